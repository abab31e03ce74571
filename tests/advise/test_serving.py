import pytest

from subeight.advise.serving import serving_flags
from subeight.kv.policy import KVPolicy


@pytest.mark.parametrize(
    "text, flags, differs",
    [
        ("none", "-ctk f16 -ctv f16", "nothing"),
        ("int8:token,axis=token,window=0,sinks=0", "-fa on -ctk q8_0 -ctv q8_0", "every token rounded as here"),
        ("keys=int4:g64,values=none", "-fa on -ctk q4_0 -ctv f16", "window of 128"),
        ("int2:g64", "-fa on -ctk q4_0 -ctv q4_0", "no fewer than 4 bits"),
        ("none,0-2.keys=int8:g64,3.keys=int4:g64,0-3.values=int4:g64", "-fa on -ctk q8_0 -ctv q4_0", "layers of their"),
    ],
)
def test_the_nearest_of_llama_cpp(text, flags, differs):
    found = {one.engine: one for one in serving_flags(KVPolicy.parse(text))}
    assert set(found) == {"vllm", "sglang", "llama.cpp"}
    assert found["llama.cpp"].flags == flags
    assert differs in found["llama.cpp"].differs
