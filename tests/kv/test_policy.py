import pytest

from subeight.errors import RecipeError
from subeight.formats import Format
from subeight.kv.policy import KVPolicy, LayerPolicy

INT4 = Format.parse("int4:g64")
SINGLE = KVPolicy(
    layers={0: LayerPolicy(INT4, None)} | {layer: LayerPolicy(None, INT4) for layer in (2, 3, 4, 9)},
)


@pytest.mark.parametrize(
    "text, policy",
    [
        ("none", KVPolicy()),
        ("int4:g64", KVPolicy(INT4, INT4)),
        ("int4:g64,window=0,sinks=0", KVPolicy(INT4, INT4, window=0, sinks=0)),
        ("keys=int4:g64,values=none,axis=token,rotate", KVPolicy(INT4, None, axis="token", rotate=True)),
        ("int4:g64,rope=before", KVPolicy(INT4, INT4, rope="before")),
        ("none,0.keys=int4:g64,2-4+9.values=int4:g64", SINGLE),
        ("fp8:token,axis=token", KVPolicy(Format.parse("fp8:token"), Format.parse("fp8:token"), axis="token")),
    ],
)
def test_text_and_back(text, policy):
    assert KVPolicy.parse(text) == policy
    assert KVPolicy.parse(str(policy)) == policy


@pytest.mark.parametrize(
    "text, words",
    [
        ("int4:g64,windw=3", "did you mean window?"),
        ("int9:g64", "did you mean"),
        ("int4:g64,axis=row", "choose channel or token"),
        ("int4:channel", "has a scale per channel"),
        ("int3:g20", "does not fill whole words"),
        ("int4:g64:had", "write `rotate`"),
        ("int4:g64,window=-1", "says nothing"),
        ("int4:g64,3.key=none", "says nothing"),
        ("int4:g64,0-2+7-3.keys=none", "says nothing"),
        ("int4:g64,3.keys=int9", "did you mean"),
        ("", "write it like"),
    ],
)
def test_bad_text_gets_one_sentence(text, words):
    with pytest.raises(RecipeError, match=words) as found:
        KVPolicy.parse(text)
    assert "\n" not in str(found.value)


def test_bits_and_single_layers():
    policy = KVPolicy.parse("keys=int4:g64,values=int2:g32:asym")
    assert policy.bits(64) == (4.25, 2 + (16 + 8) / 32)  # a zero point takes a byte
    changed = policy.with_layers({3: LayerPolicy(None, INT4)})
    assert changed.of_layer(3) == LayerPolicy(None, INT4)
    assert changed.of_layer(2) == LayerPolicy(policy.keys, policy.values)
    assert changed.bits(64, 3) == (16.0, 4.25) and changed.bits(64, 2) == policy.bits(64)
    assert str(changed) == "keys=int4:g64:sym,values=int2:g32:asym,3.keys=none,3.values=int4:g64:sym"
    assert KVPolicy().is_full and not KVPolicy().with_layers({0: LayerPolicy(INT4, None)}).is_full
