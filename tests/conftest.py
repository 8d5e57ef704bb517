"""A tiny random model, a byte-level tokenizer and preference pairs, built here so that no test needs a download."""

import contextlib
import io
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

# Before torch is imported: tests run in parallel processes, and threads that spin for each other would slow them all.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from trl_capo import CAPOConfig

CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
LANGUAGES = ("de", "sw", "日本")


def free_port() -> int:
    """A port on which nothing listens, for processes that are to find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def torchrun_variables(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun tells each of its processes."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in place.items()}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, so that every text in every script can be encoded and decoded."""
    tokens = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_config(**changes) -> LlamaConfig:
    sizes = {
        "vocab_size": 260,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,  # large, so that untrained log-probs differ from pair to pair
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaConfig(**{**sizes, **changes})


def save_tiny_model(folder, seed: int, config=None, architecture=LlamaForCausalLM) -> str:
    torch.manual_seed(seed)
    architecture(config or tiny_config()).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def tiny_llava() -> tuple[transformers.LlavaProcessor, transformers.LlavaConfig]:
    """Processor and config of a tiny vision-language model; the image processor is Pillow's, without torchvision."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = transformers.LlavaProcessor(image_processor, tokenizer, 14, "default", num_additional_image_tokens=1)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = transformers.CLIPVisionConfig(**sizes, image_size=28, patch_size=14, initializer_range=0.5)
    parts = {"vision_config": vision, "text_config": tiny_config()}
    config = transformers.LlavaConfig(**parts, image_token_id=tokenizer.convert_tokens_to_ids("<image>"))
    return processor, config


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> str:
    """Folder of a tiny Llama with its tokenizer."""
    return save_tiny_model(tmp_path_factory.mktemp("model"), seed=0)


@pytest.fixture(scope="session")
def other_model_dir(tmp_path_factory) -> str:
    """Another tiny Llama of the same shape: a reference that differs from the policy, so that rho is not 0."""
    return save_tiny_model(tmp_path_factory.mktemp("other_model"), seed=1)


def run_main(main: Callable[..., int], *argv: str) -> tuple[int, str, str]:
    """Run a command's `main` in this process; returns its exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(word) for word in argv])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
    return code, out.getvalue(), err.getvalue()


def forked(function: Callable[..., int | None], *args, timeout: float = 120) -> tuple[int, str, str]:
    """Run a function in a forked child; returns as `run_main`, with minus the number of a signal that ends it."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            code = 1
            try:
                code = function(*args) or 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        code = _wait(child, timeout)
        out.seek(0)
        err.seek(0)
        return code, out.read(), err.read()


def _wait(child: int, timeout: float) -> int:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"the forked child did not end within {timeout} s")


def make_pairs(count: int = 24) -> Dataset:
    """Standard preference pairs of different lengths in three languages, with extra columns as people have them."""
    rows = [
        {
            "prompt": f"Say {index} in {LANGUAGES[index % 3]}:",
            "chosen": " ja" * (1 + index % 4) + f" {index}",
            "rejected": " nein" * (1 + index % 3),
            "language": LANGUAGES[index % 3],
            "id": f"pair-{index}",
        }
        for index in range(count)
    ]
    return Dataset.from_list(rows)


def as_conversation(row: dict) -> dict:
    return {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
    }


@pytest.fixture(scope="session")
def pairs() -> Dataset:
    return make_pairs()


@pytest.fixture(scope="session")
def conversations(pairs) -> Dataset:
    return pairs.map(as_conversation)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Folder of the demo's data, really built."""
    import build_demo

    folder = tmp_path_factory.mktemp("demo") / "data"
    build_demo.build_data(folder)
    return folder


CPU_ARGUMENTS = {
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "max_steps": 3,
    "save_strategy": "no",
}


@pytest.fixture
def make_args(tmp_path):
    """Builds a CAPOConfig (or another class) for a quick run on the CPU; keywords win."""

    def make(cls=CAPOConfig, **changes):
        return cls(**{"output_dir": str(tmp_path / "output"), **CPU_ARGUMENTS, **changes})

    return make


def logged(trainer, key: str) -> list[float]:
    """The values of one key in the order in which they were logged."""
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def save_lora(base: str, folder) -> str:
    torch.manual_seed(5)
    modules = ["q_proj", "v_proj", "up_proj"]
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=modules, task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(LlamaForCausalLM.from_pretrained(base), lora).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def lora_dir(model_dir, tmp_path_factory) -> str:
    return save_lora(model_dir, tmp_path_factory.mktemp("lora"))
