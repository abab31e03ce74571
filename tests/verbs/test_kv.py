import pytest

from subeight import kv
from subeight.errors import InputError, RecipeError, TextError
from subeight.kv.policy import KVPolicy

pytestmark = pytest.mark.usefixtures("no_check")
SMALL = {"contexts": (64,), "windows": 2, "retrieval": 0, "written": 4}


def test_policies_apart_from_the_weights_and_crossed(house, made, tmp_path):
    low = made("gptq").directory
    found = kv(
        str(house.base),
        policies=["int2:g16,window=8,sinks=2"],
        weights=[str(low)],
        batch=3,
        options=house.options(out=tmp_path / "kv"),
        **SMALL,
    )
    cells = {(cell["weights"], cell["policy"]): cell for cell in found.numbers["cells"]}
    names = {name for name, _ in cells}
    assert len(cells) == 4 and len(names) == 2
    assert cells["full", "none"]["kl"] == 0 and cells["full", "none"]["agreement"] == 1
    losses = [cell["kl"] for key, cell in cells.items() if key != ("full", "none")]
    assert all(loss > 0 for loss in losses)
    sizes = {policy: cell["cache_bytes"] for (name, policy), cell in cells.items() if name == "full"}
    assert min(sizes.values()) < 0.7 * sizes["none"]
    memory = found.numbers["memory"]
    assert memory["weights"]["full"] > min(memory["weights"].values())
    assert memory["rows"][0]["bytes"]["64"] == 3 * sizes["none"] // 2  # the tests compute in float32
    assert {flags["engine"] for flags in found.numbers["serving"]["none"]} == {"vllm", "sglang", "llama.cpp"}


def test_a_map_and_bits_by_it(house, tmp_path):
    found = kv(
        str(house.base),
        policies=["int2:g16,window=8,sinks=2"],
        formats=["int8:g16", "int2:g16"],
        budget="6 bits",
        options=house.options(out=tmp_path / "kv"),
        **SMALL,
    )
    rows = found.numbers["map"]["rows"]
    loss = {(row["layer"], row["side"], row["format"]): row["kl"] for row in rows}
    layers = {layer for layer, _, _ in loss}
    assert len(rows) == len(loss) == 4 * len(layers)
    assert all(loss[layer, side, "int2:g16:sym"] > loss[layer, side, "int8:g16:sym"] for layer, side, _ in loss)
    (made,) = found.numbers["allocation"]
    assert made["bits"] <= 6 and KVPolicy.parse(made["policy"]).window == 8
    chosen = [loss[row["layer"], side, row[side]] for row in made["rows"] for side in ("keys", "values") if row[side]]
    assert made["expected_kl"] == pytest.approx(sum(chosen), rel=0.01)
    kl = {cell["policy"]: cell["kl"] for cell in found.numbers["cells"]}
    assert 0 < kl["allocated 6 bits"] < kl["int2:g16:sym,window=8,sinks=2"]
    assert "joint" not in found.numbers


def test_weights_and_cache_within_one_budget(house, made, tmp_path):
    low = made("gptq").directory
    with pytest.raises(InputError, match="weights and cache take"):
        kv(str(house.base), budget="1 kB", options=house.options(out=tmp_path / "small"), **SMALL)
    assert not (tmp_path / "small").exists()
    options = house.options(out=tmp_path / "kv")
    asked = {"policies": ["int2:g16,window=8,sinks=2"], "weights": [str(low)], "options": options, **SMALL}
    sizes = kv(str(house.base), **asked).numbers["memory"]
    full, narrow = max(sizes["weights"].values()), min(sizes["weights"].values())
    cache = sizes["rows"][0]["bytes"]["64"]
    budget = (full + narrow) / 2 + cache
    asked["options"] = house.options(out=tmp_path / "budget")
    found = kv(str(house.base), **asked, formats=["int8:g16", "int2:g16"], budget=f"{budget:.0f} B").numbers["joint"]
    assert [row["fits"] for row in found["rows"]] == [row["weights"] != "full" for row in found["rows"]]
    best = found["rows"][found["best"]]
    assert best["kl"] == min(row["kl"] for row in found["rows"] if row["fits"])
    assert all((row["longest"] >= 64) == row["fits"] for row in found["rows"])


@pytest.mark.parametrize(
    "changed, error, words",
    [
        ({"policies": ["int4:channel"]}, RecipeError, "has a scale per channel"),
        ({"contexts": (10**7,)}, InputError, "give shorter ones"),
        ({"length": 10**7}, InputError, "--length has 10000000"),
        ({"policies": ["int4:g16,99.keys=none"]}, RecipeError, "layer 99 is named, but the model's are 0 to"),
        ({"budget": "1 bits"}, InputError, "keys and values take .* bits at least"),
        ({"budget": "3"}, InputError, "say for instance"),
        ({"formats": ["none"]}, RecipeError, "rounds nothing"),
        ({"contexts": (128,), "windows": 1}, TextError, "give longer text"),
    ],
)
def test_bad_input_leaves_nothing(house, tmp_path, changed, error, words):
    short = tmp_path / "short.txt"
    short.write_text("one two three")
    options = house.options(out=tmp_path / "kv", evals=(str(short),))
    with pytest.raises(error, match=words):
        kv(str(house.base), **{"policies": ["none"], **SMALL, **changed}, options=options)
    assert not (tmp_path / "kv").exists()
