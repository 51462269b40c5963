"""BasicMotions, and the recording of the demo, joined from test recordings that the model was not trained on.

Run it with `python firmware_models/motion/recording.py --out demo/recording.csv`.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from aeon.datasets import load_basic_motions
from numpy.typing import NDArray

LABELS = ("standing", "walking", "running", "badminton")
CHANNELS = ("ax", "ay", "az", "gx", "gy", "gz")
RATE = 10.0

# The first two test recordings of each activity, apart from each other, so that the activity changes at each joint.
DEMO_ORDER = (
    ("standing", 0),
    ("walking", 0),
    ("running", 0),
    ("badminton", 0),
    ("walking", 1),
    ("standing", 1),
    ("badminton", 1),
    ("running", 1),
)


def recordings(split: str) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the recordings of the "train" or "test" split, shape (40, 100, 6), and the index in LABELS of each."""
    samples, activities = load_basic_motions(split=split)
    return samples.transpose(0, 2, 1), np.array([LABELS.index(activity) for activity in activities])


def demo_recording() -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return test recordings in DEMO_ORDER, joined: samples of shape (800, 6), and the index in LABELS of each."""
    samples, activities = recordings("test")
    chosen = [np.flatnonzero(activities == LABELS.index(label))[nth] for label, nth in DEMO_ORDER]
    return np.concatenate(samples[chosen]), np.repeat(activities[chosen], samples.shape[1])


def main() -> None:
    """Write the recording of the demo."""
    parser = argparse.ArgumentParser(description="Write the recording the demo plays.")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    samples, activities = demo_recording()
    with parser.parse_args().out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("seq", *CHANNELS, "activity"))
        for seq, (sample, activity) in enumerate(zip(samples, activities, strict=True)):
            writer.writerow((seq, *(f"{value:.6f}" for value in sample), LABELS[activity]))


if __name__ == "__main__":
    main()
