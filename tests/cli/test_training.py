from subeight.cli.training import manifest_table
from subeight.train.manifest import Entry, Manifest
from tests.verbs import small


def test_a_manifest_is_shown_with_blocks_together():
    entries = [Entry(f"model.layers.{n}.q.weight", (4, 8), "quantized", "nf4:g64", 17) for n in range(3)]
    entries += [Entry("model.embed.weight", (9, 8), "frozen", "bfloat16", 144, "it is an embedding")]
    table = manifest_table(Manifest(tuple(entries)))
    columns = [list(column.cells) for column in table.columns]
    assert columns[0][:2] == ["model.layers.*.q.weight", "model.embed.weight"] and columns[1][:2] == ["3", "1"]
    assert columns[2][2:] == ["96", "72", "0", "168"] and columns[4][2] == "4.25 bits each"


def test_bad_words_get_one_sentence(run, house, tmp_path):
    data = small.write_rows(tmp_path / "rows.jsonl", small.text_rows(4))
    done = run("train", "qlora", house.base, "--data", data, "--targets", "q_prj", "--out", tmp_path / "run")
    assert done.status == 2 and "did you mean q_proj" in done.err and not (tmp_path / "run").exists()
    done = run("train", "qlora", house.base, "--data", data, "--dry-run", "--threads", 1, "--recipe", "rtn-int4")
    assert done.status == 0 and "sequences to train on" in done.err
