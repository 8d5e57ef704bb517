"""One process of a CAPO run, for launchers: `accelerate launch scripts/train_capo.py --config configs/lora.yaml`.

It is `trl-capo train` without that command's own call of `accelerate launch`.
"""

import sys

from trl_capo.train.command import main

if __name__ == "__main__":
    sys.exit(main())
