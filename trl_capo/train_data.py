"""The data that a training's options name: loaded and split, with the noise that was asked for."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from trl import DatasetMixtureConfig, ScriptArguments

from trl_capo.config import CAPOConfig
from trl_capo.data import load_preference_data, select_split
from trl_capo.data_files import first_problem
from trl_capo.data_mixture import load_mixture, local_files
from trl_capo.groups import find_groups
from trl_capo.messages import get_logger
from trl_capo.noise import IS_NOISY, inject_noise, noise_counts, refuse_noise
from trl_capo.noise_arguments import NoiseArguments
from trl_capo.paths import find_path

logger = get_logger(__name__)


def data_source(
    script_args: ScriptArguments,
    training_args: CAPOConfig,
    dataset_args: DatasetMixtureConfig,
    noise_args: NoiseArguments | None,
) -> dict[str, Any] | None:
    """The options that name the training data, for whoever reads the pair log; None for a mixture."""
    if dataset_args.datasets:
        return None
    named = {name: getattr(script_args, name) for name in ("dataset_name", "dataset_config", "dataset_train_split")}
    return named | {"group_column": training_args.group_column} | asdict(noise_args or NoiseArguments())


def load_data(
    script_args: ScriptArguments,
    training_args: CAPOConfig,
    dataset_args: DatasetMixtureConfig,
    noise_args: NoiseArguments | None,
) -> tuple[Any, Any]:
    """The data sets that the arguments name, to train on and to evaluate on (None where nothing is evaluated).

    Raises:
        ValueError, OSError: something is missing or does not fit; the message is for the user.
    """
    check_noise(noise_args)
    splits = load_splits(script_args, training_args, dataset_args)
    train_dataset = with_noise(training_split(splits, script_args), training_args, noise_args)
    return train_dataset, evaluation_split(splits, script_args, training_args)


def load_splits(
    script_args: ScriptArguments, training_args: CAPOConfig, dataset_args: DatasetMixtureConfig
) -> Mapping[str, Any]:
    """All splits of the data; errors as of `load_data`."""
    if dataset_args.datasets:
        if script_args.dataset_name:
            logger.warning("dataset_name is not used, because `datasets` is given.")
        return load_mixture(dataset_args, training_args.seed)
    if script_args.dataset_name:
        return load_preference_data(
            script_args.dataset_name, config=script_args.dataset_config, streaming=script_args.dataset_streaming
        )
    raise ValueError("no data: give dataset_name (a hub name, folder or file) or a `datasets` mixture.")


def training_split(splits: Mapping[str, Any], script_args: ScriptArguments) -> Any:
    """The pairs to train on; errors as of `load_data`."""
    return select_split(splits, script_args.dataset_train_split, "dataset_train_split")


def evaluation_split(splits: Mapping[str, Any], script_args: ScriptArguments, training_args: CAPOConfig) -> Any:
    """The pairs to evaluate on, None where nothing is evaluated; errors as of `load_data`."""
    if training_args.eval_strategy == "no":
        return None
    return select_split(splits, script_args.dataset_test_split, "dataset_test_split")


def stream_problem(script_args: ScriptArguments, dataset_args: DatasetMixtureConfig) -> str | None:
    """File, line and reason of what cannot be read in a stream of local files; None if all can, or it is none."""
    if dataset_args.datasets:
        named, paths = "datasets: they", local_files(dataset_args) if dataset_args.streaming else []
    else:
        path = (
            find_path(script_args.dataset_name) if script_args.dataset_streaming and script_args.dataset_name else None
        )
        named, paths = f"dataset_name={script_args.dataset_name!r}", [] if path is None else [path]
    problem = first_problem(*paths)
    return None if problem is None else f"{named} cannot be read: {problem}"


def check_noise(args: NoiseArguments | None) -> None:
    """Refuse noise that could not be injected into any data; errors as of `load_data`."""
    if args is not None and args.inject_noise is not None:
        with _saying(args):
            refuse_noise(args.inject_noise, args.inject_rate, args.inject_score_column)


def with_noise(dataset: Any, training_args: CAPOConfig, args: NoiseArguments | None) -> Any:
    """The training pairs with the noise that was asked for, if any; says how many of each group were changed."""
    if args is None or args.inject_noise is None:
        return dataset
    group_column = training_args.group_column
    with _saying(args):
        dataset = inject_noise(
            dataset,
            args.inject_noise,
            args.inject_rate,
            seed=args.inject_seed,
            group_column=group_column,
            score_column=args.inject_score_column,
        )
    _, labels = find_groups(dataset, group_column, "the training pairs")
    counts = noise_counts(labels, dataset[IS_NOISY])
    per_group = ", ".join(f"{group} {noisy:,} of {pairs:,}" for group, (pairs, noisy) in counts.items())
    logger.warning(
        f"{_asked(args)}: {sum(dataset[IS_NOISY]):,} of {len(dataset):,} training pairs were changed"
        + (f" ({per_group})" if counts else "")
    )
    return dataset


@contextmanager
def _saying(args: NoiseArguments) -> Iterator[None]:
    """Within it, errors say which noise was asked for."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{_asked(args)}: {error}") from error


def _asked(args: NoiseArguments) -> str:
    return f"inject_noise={args.inject_noise!r}, inject_rate={args.inject_rate!r}, inject_seed={args.inject_seed}"
