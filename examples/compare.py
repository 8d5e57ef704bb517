"""Train DPO and CAPO on the same pairs, 40 % of them with a wrong label, and compare them on pairs with right labels.

python examples/compare.py [MODEL DATA]    # the defaults are what `make demo` builds
"""

import sys

import torch
from datasets import load_dataset
from peft import LoraConfig

from trl_capo import CAPOConfig, CAPOTrainer
from trl_capo.data.noise import inject_noise

model, folder = sys.argv[1:3] or ["demo/model", "demo/data"]
data = load_dataset(folder)  # columns: prompt, chosen, rejected, language
noisy = inject_noise(data["train"], "flip", 0.4, seed=0)
gpu = torch.cuda.is_available()
found = {}
for method, noise_rate in (("DPO", 0.0), ("CAPO", "auto")):
    args = CAPOConfig(
        output_dir=f"outputs/{method}",
        noise_rate=noise_rate,
        num_train_epochs=3,
        learning_rate=3e-4,
        per_device_train_batch_size=8,
        padding_free=True,
        bf16=gpu,
        use_cpu=not gpu,
        report_to="none",
    )
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = CAPOTrainer(model, args=args, train_dataset=noisy, eval_dataset=data["test"], peft_config=lora)
    trainer.train()
    found[method] = trainer.evaluate()
for group in sorted(set(data["test"]["language"])):
    accuracies = (f"{method} {100 * found[method][f'eval_rewards/accuracies/{group}']:.0f} %" for method in found)
    print(f"{group}: {', '.join(accuracies)} of the test pairs ranked right")
print(f"Noise rates that CAPO found: {trainer.noise_rate_estimator.by_group()}")
