"""What the transfer suite saves against a plain rendering of ssl-transfer's procedure, measured in one run.

make bench, or one of them: python -m transfer.bench --only transfer_sweep_ratio_10
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from common import cli
from common.bench import Benchmark, DeviceBenchmark, run_room
from transfer.synthetic import APART, BOTH, HUNDRED, TEN, TEST

LARGE = 30_000, 10_000  # images of the memory benchmark: with fewer, L-BFGS's arrays take more than the features


def _measure(function: str, *arguments: Any) -> Any:
    """Call a function of `transfer.measurements`, which takes seconds to import."""
    from transfer import measurements

    return getattr(measurements, function)(*arguments)


def _benchmarks() -> dict[str, Benchmark]:
    benchmarks: dict[str, Benchmark] = {
        "transfer_extract_ratio": Benchmark(
            f"feature extraction, ssl-transfer's four passes / ours (ResNet-50, {BOTH} + {TEST} JPEGs of 500x375)",
            2.2,
            "higher",
            partial(_measure, "extraction_ratio"),
        )
    }
    for problem in (TEN, HUNDRED):
        mark = "" if problem is HUNDRED else f"_{problem.classes}"  # plain ids are for the larger problem
        large = problem._replace(n=LARGE[0], test=LARGE[1])
        for name, what, of, target, better, function in (
            ("transfer_sweep_ratio", "sweep and refit, float64 ascending / ours", problem, 3.0, "higher",
             "sweep_ratio"),
            ("transfer_total_ratio", "extraction and sweep, theirs / ours", problem, 2.0, "higher", "total_ratio"),
            ("transfer_metric_difference", "test accuracy, points between the two", problem, APART, "lower",
             "metric_difference"),
            ("transfer_memory_ratio", "peak memory of the sweep, ours / theirs", large, 0.5, "lower", "memory_ratio"),
        ):  # fmt: skip
            run = partial(_measure, function, of)
            benchmarks[name + mark] = Benchmark(f"{what} ({of.title})", target, better, run)
    return benchmarks


BENCHMARKS = _benchmarks()
DEVICE_BENCHMARKS = {
    "gpu_extract_percent": DeviceBenchmark(
        "feature extraction / bare forward passes over a batch on the device, in percent (ResNet-50 at 224, bf16)",
        90.0,
        "higher",
        partial(_measure, "gpu_extraction"),
    ),
    "gpu_sweep_ratio": DeviceBenchmark(
        "45-value sweep and refit, scikit-learn on the CPU / on the device",
        10.0,
        "higher",
        partial(_measure, "gpu_sweep"),
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write it where asked."""
    run_room("transfer.bench", __doc__ or "", BENCHMARKS, argv, DEVICE_BENCHMARKS)


if __name__ == "__main__":
    cli.run(main)
