"""The main job through Python on a real model: quantized, loaded by plain transformers, measured, exported, drawn."""

import pytest

from subeight import Options, compare, evaluate, export, quantize, report
from subeight.verbs import parity as parity_room
from tests.verbs import small
from tests.verbs.conftest import unchecked


@pytest.mark.real
def test_a_real_model_from_weights_to_the_page(real_model, tmp_path, monkeypatch):
    base = str(real_model("stories260K"))
    text = (
        "Once upon a time there was a little girl who had a red ball. She played with it in the park every day. "
        "One day the ball rolled into the pond and she was sad. A big dog saw it and jumped into the water. "
    )
    rows = [{"text": f"{text}{n} {text}", "id": str(n)} for n in range(8)]
    evals = str(small.write_rows(tmp_path / "evals.jsonl", rows))
    recipe = small.write_recipe(
        tmp_path / "gptq.yaml", "weights: int4:g43:sym\nmethods: [gptq]\ncalibration: {sequences: 8, length: 64}\n"
    )

    def options(name: str) -> Options:
        return Options(out=tmp_path / name, threads=1, quiet=True, evals=(evals,), dtype="float32")

    same = evaluate(base, base, options=options("same"))
    assert same.numbers["kl"] == 0.0 and same.numbers["top1"] == 1.0
    assert same.numbers["ppl"] < 40, "a trained model knows such text"
    result = quantize(base, str(recipe), to="dense", options=options("gptq"))
    parity = result.numbers["parity"]
    assert 0 <= parity["max_abs"] < parity["bound"] and parity["compared"] > 0
    measured = evaluate(str(result.directory), base, options=options("measured"))
    assert 0 < measured.numbers["kl"] < 1
    assert measured.record.coordinates.recipe == result.record.coordinates.recipe
    monkeypatch.setattr(parity_room, "check", unchecked)  # once is enough here: a fresh process costs seconds
    packed = compare(base, ["rtn-int8"], options=options("compared"))
    (row,) = packed.numbers["rows"]
    assert row["kl"] < measured.numbers["kl"]
    assert row["stored"] == "subeight", "its width of 172 has short groups, which compressed-tensors cannot hold"
    page = report([str(tmp_path / name) for name in ("gptq", "measured", "compared")], out=tmp_path / "page.html")
    assert "stories260K" in page.read_text()


def test_an_export_is_loaded_by_plain_transformers_and_compared(house, made, tmp_path):
    dense = export(str(made("gptq").directory), to="dense", options=house.options(out=tmp_path / "dense"))
    parity = dense.numbers["parity"]
    assert 0 <= parity["max_abs"] < parity["bound"] and parity["tokens"] == 96
