"""A GGUF file by the verbs: what the record says of it, and that it is a model like any other."""

import numpy as np
import pytest
import torch

from subeight import evaluate, export, quantize
from subeight.errors import InputError, ParityError
from subeight.export import gguf as target
from subeight.models.model import Model
from tests.verbs import small

pytestmark = pytest.mark.usefixtures("no_check")


def test_the_record_and_what_the_file_computes(house, made, tmp_path):
    source = made("gptq")
    result = export(str(source.directory), to="gguf", options=house.options(out=tmp_path / "gguf"))
    file = tmp_path / "gguf" / "model.gguf"
    numbers = result.numbers
    assert numbers["checkpoint"] == str(file)
    assert numbers["file_bytes"] == file.stat().st_size
    assert numbers["types"]["q4_0"]["tensors"] == 14
    assert numbers["bits_per_weight"] == 4.5
    assert numbers["parity"]["same_weights"] > 0
    assert "skipped" not in numbers["parity"], "transformers read the whole config"
    model, read = Model(source.directory), Model(file)
    for linear in model.linears:
        if linear.kind != "tied":
            expected = model.weights.read(f"{linear.name}.weight").float()
            assert torch.equal(read.weights.read(f"{linear.name}.weight"), expected)
    measured = [
        evaluate(str(path), str(house.base), options=house.options(out=tmp_path / f"e{at}")).record
        for at, path in enumerate((source.directory, file))
    ]
    assert measured[0].coordinates == measured[1].coordinates
    assert measured[0].numbers["kl"] == pytest.approx(measured[1].numbers["kl"], rel=1e-6)


def test_more_bits_than_the_codes_have_are_told(house, made, tmp_path):
    result = export(str(made("rtn").directory), to="gguf", options=house.options(out=tmp_path / "gguf"))
    (warning,) = result.record.warnings
    assert warning.startswith("int3:g32:sym takes 4.5 bits per weight as q4_0, the smallest type")


def test_quantize_writes_both(house, tmp_path):
    options = house.options(out=tmp_path / "both")
    result = quantize(str(house.base), str(house.rtn), to="gguf", options=options)
    assert result.numbers["gguf"]["file"] == str(tmp_path / "both" / "model.gguf")
    assert Model(tmp_path / "both").coordinate, "the checkpoint is there as well"
    again = quantize(str(house.base), str(house.rtn), to="gguf", options=options)
    assert again.lines == (f"{tmp_path / 'both'} is finished; nothing was done again.",)


@pytest.mark.parametrize("how", [{"to": "gguf"}, {"engine": "gguf"}])
def test_quantize_refuses_before_it_begins(house, tmp_path, how):
    recipe = small.write_recipe(tmp_path / "r.yaml", "name: r\nweights: nf4:g32\nmethods: [rtn]\n")
    with pytest.raises(InputError, match="q_proj"):
        quantize(str(house.base), str(recipe), **how, options=house.options(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_file_of_other_numbers_is_set_aside(house, made, tmp_path, monkeypatch):
    def wrong(_name: str, rows: np.ndarray, _config, _family) -> np.ndarray:
        return rows[::-1] if rows.ndim == 2 else rows

    monkeypatch.setattr(target, "laid_out", wrong)
    with pytest.raises(ParityError, match=r"other numbers in token_embd.*renamed to .*model\.gguf\.failed-parity"):
        export(str(made("rtn").directory), to="gguf", options=house.options(out=tmp_path / "gguf"))
    assert not (tmp_path / "gguf" / "model.gguf").exists()
