"""What a config.json says, and what is refused of it."""

import pytest

from mux_core.checkpoint import Rope, RopeKind, read_config, read_eos, read_geometry
from mux_core.errors import SpecError, UnsupportedModel
from mux_core.llm import Dtype

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256,
    "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 2048, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
    "dtype": "bfloat16", "hidden_act": "silu", "eos_token_id": [2, 7],
}  # fmt: skip


def without(*names: str) -> dict[str, object]:
    return {name: value for name, value in LLAMA.items() if name not in names}


def test_a_llama_as_transformers_5_writes_it() -> None:
    config = read_config(LLAMA)
    g = config.geometry
    assert (g.layers, g.hidden, g.heads, g.kv_heads, g.head_dim) == (4, 256, 8, 2, 32)
    assert (g.vocab, g.max_model_len, g.dtype) == (2048, 4096, Dtype.BFLOAT16)
    assert (g.tied_embeddings, g.qkv_bias, g.qk_norm) == (False, False, False)
    assert config.rope == Rope(theta=500000.0)
    assert config.norm_eps == 1e-5
    assert config.eos_token_ids == (2, 7)


def test_an_older_config_means_the_same() -> None:
    old = {**without("rope_parameters", "dtype"), "rope_theta": 500000.0, "rope_scaling": None,
           "torch_dtype": "bfloat16"}  # fmt: skip
    assert read_config(old) == read_config(LLAMA)


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("MistralForCausalLM", (False, False)),
        ("Qwen2ForCausalLM", (True, False)),
        ("Qwen3ForCausalLM", (False, True)),
    ],
)
def test_architectures_differ_in_biases_and_norms(
    architecture: str, expected: tuple[bool, bool]
) -> None:
    g = read_geometry({**LLAMA, "architectures": [architecture]})
    assert (g.qkv_bias, g.qk_norm) == expected


def test_without_architectures_the_model_type_decides() -> None:
    config = {**without("architectures"), "model_type": "qwen2"}
    assert read_geometry(config).architecture == "Qwen2ForCausalLM"


def test_head_dim_is_explicit_or_derived() -> None:
    assert read_geometry({**LLAMA, "head_dim": 64}).head_dim == 64
    assert read_geometry({**LLAMA, "head_dim": None}).head_dim == 32
    assert read_geometry({**LLAMA, "architectures": ["Qwen3ForCausalLM"]}).head_dim == 128


def test_absent_values_have_transformers_defaults() -> None:
    g = read_geometry(without("num_key_value_heads", "dtype", "rope_parameters"))
    assert (g.kv_heads, g.dtype) == (8, Dtype.FLOAT32)
    assert read_config(without("rope_parameters")).rope == Rope(theta=10000.0)


@pytest.mark.parametrize("name", ["rope_parameters", "rope_scaling"])
def test_llama3_scaling_is_read_in_both_spellings(name: str) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
               "rope_theta": 500000.0}  # fmt: skip
    rope = read_config({**without("rope_parameters"), name: scaling}).rope
    assert rope == Rope(theta=500000.0, kind=RopeKind.LLAMA3, factor=8.0, low_freq_factor=1.0,
                        high_freq_factor=4.0, original_len=8192)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
        ({"architectures": None, "model_type": "gpt2"}, 'model_type is "gpt2"'),
        ({"num_local_experts": 8}, "num_local_experts is 8"),
        ({"n_routed_experts": 64}, "n_routed_experts is 64"),
        ({"kv_lora_rank": 512}, "kv_lora_rank is 512"),
        ({"quantization_config": {"quant_method": "awq"}}, 'quantization_config is.*awq'),
        ({"sliding_window": 1024}, "sliding_window is 1024.*4096"),
        ({"sliding_window": 1024, "use_sliding_window": True}, "sliding_window is 1024"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is.*sliding"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4}}, 'rope_type is "yarn".*llama3'),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor is null"),
        ({"rope_scaling": "big", "rope_parameters": None}, 'rope_scaling is "big"'),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu".*silu'),
        ({"dtype": "float8_e4m3fn"}, "dtype is.*float8.*bfloat16"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"vocab_size": "many"}, 'vocab_size is "many"'),
        ({"hidden_size": None}, "hidden_size is null"),
        ({"hidden_size": 250}, "hidden_size is 250.*multiple"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_by_field_and_value(
    change: dict[str, object], named: str
) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        read_config({**LLAMA, **change})


def test_heads_must_divide() -> None:
    with pytest.raises(SpecError, match="8 heads are not a multiple of 3"):
        read_geometry({**LLAMA, "num_key_value_heads": 3})


@pytest.mark.parametrize(
    "harmless",
    [{"sliding_window": 4096}, {"sliding_window": None},
     {"sliding_window": 1024, "use_sliding_window": False}, {"quantization_config": None},
     {"layer_types": ["full_attention"] * 4}, {"num_experts": 0}],
)  # fmt: skip
def test_what_changes_nothing_is_accepted(harmless: dict[str, object]) -> None:
    assert read_config({**LLAMA, **harmless}) == read_config(LLAMA)


@pytest.mark.parametrize(
    ("value", "ids"), [(None, ()), (5, (5,)), ([9, 5, 9], (5, 9)), ([], ()), ("x", ())]
)
def test_ends_of_text(value: object, ids: tuple[int, ...]) -> None:
    assert read_eos({"eos_token_id": value}) == ids
