import pytest
from transformers import Gemma3TextConfig, LlamaConfig

from subeight.diagnose.fields import changes_for, config_differences
from subeight.models.model import Model
from tests.verbs import small


def fields(ours, theirs, longest=64):
    return [difference.field for difference in config_differences(ours, theirs, longest)]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, ["rope_theta"]),
        ({"rms_norm_eps": 1e-3}, ["rms_norm_eps"]),
        ({"hidden_act": "gelu"}, ["hidden_act"]),
        ({"num_key_value_heads": 8}, ["num_key_value_heads"]),
        ({"rms_norm_eps": 9.9999999e-07}, []),  # as float32 holds it
        ({"dtype": "bfloat16", "use_cache": False, "attention_dropout": 0.1, "architectures": ["Other"]}, []),
        ({"max_position_embeddings": 4096}, []),
    ],
)
def test_fields_that_change_the_function(changed, expected):
    assert fields(LlamaConfig(), LlamaConfig(**changed)) == expected


def test_the_longest_position_counts_where_prompts_reach_it_or_the_rope_is_scaled():
    assert fields(LlamaConfig(), LlamaConfig(max_position_embeddings=32)) == ["max_position_embeddings"]
    scaled = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    found = fields(LlamaConfig(), LlamaConfig(max_position_embeddings=4096, rope_parameters=scaled))
    assert found == ["max_position_embeddings", "rope_scaling.factor", "rope_scaling.rope_type"]


def test_nested_ropes_are_changed_one_value_at_a_time():
    ours, theirs = Gemma3TextConfig(), Gemma3TextConfig()
    theirs.rope_parameters["full_attention"]["rope_theta"] = 5.0
    (difference,) = config_differences(ours, theirs, 64)
    assert difference.field == "rope_parameters.full_attention.rope_theta"
    changes = changes_for(theirs, [difference])
    assert changes == {"rope_parameters": ours.to_dict()["rope_parameters"]}


def test_a_model_with_other_fields(tmp_path):
    model = Model(small.save_llama(tmp_path / "model"))
    changed = model.with_config({"rms_norm_eps": 0.5})
    assert changed.config.rms_norm_eps == 0.5
    assert model.config.rms_norm_eps != 0.5
    assert changed.label == model.label
    assert changed.fingerprint["config"] != model.fingerprint["config"]
    assert changed.fingerprint["weights"] == model.fingerprint["weights"]
