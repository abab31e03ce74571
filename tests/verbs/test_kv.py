import pytest

from subeight import kv
from subeight.errors import InputError, RecipeError, TextError

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


@pytest.mark.parametrize(
    "changed, error, words",
    [
        ({"policies": ["int4:channel"]}, RecipeError, "has a scale per channel"),
        ({"contexts": (10**7,)}, InputError, "give shorter ones"),
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
