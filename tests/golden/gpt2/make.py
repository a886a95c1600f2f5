"""Makes what lies beside it: GPT-2 as transformers writes it, and the logits that it gives.

    python3 make.py      needs torch 2.15.0 (CPU) and transformers 5.24.0

Two networks of 2 x 16 over the 38 tokens of melody-c. `tied` has no row for the start of a piece, the
GELU by tanh, and gives its table out again; `own` has a 39th token that begins a piece, the exact GELU,
another inner width, and a matrix of its own for the output. `logits.safetensors` holds for each the
`ids` `[steps]` and the `logits` `[steps, vocab_size]`.

    python3 make.py check FOLDER      compares a folder of `etude export --format huggingface`

Prints the largest difference between the logits that transformers has for the folder and those of
`FOLDER/etude.json`, a list of `[ids, logits]`.
"""

import json
import os
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

HERE = os.path.dirname(os.path.abspath(__file__))
SEED = 20261126
VOCAB, STEPS = 38, 32
torch.set_num_threads(1)


def make():
    torch.manual_seed(SEED)
    out = {}
    for name, sizes in {
        "tied": dict(vocab_size=VOCAB, bos_token_id=None),
        "own": dict(vocab_size=VOCAB + 1, bos_token_id=VOCAB, n_inner=40, activation_function="gelu",
                    tie_word_embeddings=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    }.items():
        config = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=STEPS, eos_token_id=None, **sizes)
        model = GPT2LMHeadModel(config).eval()
        with torch.no_grad():
            # Far from where a network begins: nothing is 0 or 1, and no logit is near another.
            for key, p in model.named_parameters():
                p.copy_(0.4 * torch.randn(p.shape) + (1.0 if "ln_" in key and "weight" in key else 0.0))
            if name == "own":
                model.lm_head.weight[VOCAB] = 0.0
            ids = torch.randint(VOCAB, (STEPS,))
            if name == "own":
                ids[0] = VOCAB
            out[name + ".ids"] = ids.float()
            out[name + ".logits"] = model(ids[None]).logits[0].contiguous()
        model.save_pretrained(os.path.join(HERE, name))
        extra = os.path.join(HERE, name, "generation_config.json")
        if os.path.exists(extra):
            os.remove(extra)
    save_file(out, os.path.join(HERE, "logits.safetensors"), {"torch": torch.__version__, "seed": str(SEED)})


def check(folder):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with open(os.path.join(folder, "etude.json")) as f:
        ids, logits = json.load(f)
    logits = torch.tensor(logits)
    with torch.no_grad():
        found = model(torch.tensor([ids])).logits[0].float()[:, : logits.shape[1]]
    most = (found - logits).abs().max().item()
    print(f"{type(model).__name__}, {model.dtype}: {len(ids)} steps, largest logit "
          f"{logits.abs().max().item():.3f}, largest difference {most:.2e}")
    sys.exit(most > 1e-4)


check(sys.argv[2]) if sys.argv[1:2] == ["check"] else make()
