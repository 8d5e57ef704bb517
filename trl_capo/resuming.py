"""DPOTrainer, with checkpoints from which a killed training goes on as if it had not been killed."""

from pathlib import Path

from safetensors.torch import load_model, save_model
from torch.nn import Module
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import DPOTrainer

from trl_capo.checkpoints import choose_checkpoint, read_state, write_state
from trl_capo.messages import get_logger
from trl_capo.noise_rate import NoiseRateEstimate
from trl_capo.nonfinite import refuse_spoilt_weights
from trl_capo.pair_logger import PairLogger
from trl_capo.precision import bfloat16_warnings
from trl_capo.recorder import PairRecorder
from trl_capo.termination import checkpoint_on_sigterm, end_if_agreed

logger = get_logger(__name__)

REFERENCE_NAME = "reference.safetensors"
"""Of a reference that moves."""


class ResumableDPOTrainer(DPOTrainer):
    """DPOTrainer that never resumes from a half-written checkpoint, and saves one when it gets SIGTERM.

    To Transformers' checkpoints it adds what is to be logged next: what has been summed since the last log, of the
    loss, of TRL's metrics and of ours; and the reference, if it moves (`sync_ref_model`). It goes with the random
    numbers' state, which Transformers saves and loads last, and in every process.
    """

    _capo_recorder: PairRecorder  # the subclass makes it
    _capo_estimate: NoiseRateEstimate | None  # the subclass looks it up
    _capo_pair_logger: PairLogger | None
    _capo_saved = False  # whether the last step has a checkpoint

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
        on_cpu = self.args.device.type == "cpu"
        for warning in bfloat16_warnings(on_cpu=on_cpu, bf16=self.args.bf16, dtype=self.model.dtype):
            logger.warning(warning)
        checkpoint = choose_checkpoint(resume_from_checkpoint, self.args.output_dir)
        if checkpoint and self.args.sync_ref_model and not self._capo_has_reference(checkpoint):
            logger.warning(
                f"sync_ref_model: {checkpoint} does not hold the reference (under FSDP and DeepSpeed none does). It "
                "starts again from where it was at the first step; the resumed training differs from one that was "
                "never stopped."
            )
        with checkpoint_on_sigterm(self, self._capo_recorder):
            done = super().train(checkpoint, trial, ignore_keys_for_eval)
        refuse_spoilt_weights(self)
        return done

    @property
    def _capo_moving_reference(self) -> Module | None:
        """The reference that follows the policy (`sync_ref_model`), where every process has all of it."""
        if not self.args.sync_ref_model or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return None
        return self.accelerator.unwrap_model(self.ref_model)

    def _capo_has_reference(self, checkpoint: str) -> bool:
        return self._capo_moving_reference is not None and Path(checkpoint, REFERENCE_NAME).exists()

    def _run_epoch(self, **arguments):
        """Nothing, where the checkpoint is that of the last step, within an epoch: Transformers would go on."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**arguments)

    def _maybe_log_save_evaluate(self, *args, **options):
        self._capo_saved = False
        super()._maybe_log_save_evaluate(*args, **options)
        end_if_agreed(self, self._capo_recorder)

    def _save_checkpoint(self, model, trial):
        refuse_spoilt_weights(self)
        if self.args.should_save:  # an older checkpoint of this step is no whole one while it is overwritten
            folder = Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
            (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)
        self._capo_saved = True

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        if self._capo_estimate is not None:
            self._capo_estimate.share()
        if self._capo_pair_logger is not None:
            self._capo_pair_logger.flush()
        state = {
            "loss": self.accelerator.reduce(self._tr_loss.clone(), reduction="mean").item(),
            "last_logged": self._globalstep_last_logged,
            "metrics": self._metrics["train"],
            "tokens": self._total_train_tokens,
            "pairs": self._capo_recorder.state(),
        }
        if self.args.should_save and self._capo_moving_reference is not None:
            save_model(self._capo_moving_reference, str(Path(output_dir, REFERENCE_NAME)))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_state(Path(output_dir), state)

    def _load_rng_state(self, checkpoint):
        super()._load_rng_state(checkpoint)
        if checkpoint is not None and self._capo_has_reference(checkpoint):
            load_model(self._capo_moving_reference, str(Path(checkpoint, REFERENCE_NAME)))
        state = None if checkpoint is None else read_state(Path(checkpoint))
        if state is None:
            return
        self._tr_loss.fill_(state["loss"])
        self._total_loss_scalar = -state["loss"]  # the mean loss of this `train()` is of its own steps
        self._globalstep_last_logged = state["last_logged"]
        self._metrics["train"].update(state["metrics"])
        self._total_train_tokens = state["tokens"]
        self._capo_recorder.restore(state["pairs"])
