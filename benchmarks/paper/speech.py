"""Speech Commands clips: reading, speakers, features, shortened words, and the LSTM's start."""

from __future__ import annotations

import functools
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.fft import idct
from torch import Tensor, nn

from drocc_ext.models.networks import LSTMClassifier

FILE = "speech_commands_test_mfcc.npz"
WORDS = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes")
SILENCE = "_silence_"
# Of the speakers, for training and validation; the others are for testing.
TRAIN_SHARE, VALIDATION_SHARE = 0.6, 0.2
# Log energies below this tell a digitally silent recording from a quiet one, not words apart.
FLOOR = -12.0
COARSE = 7, 4  # frames and bands in a mean
_EPSILON = 1e-4

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


class Clips(NamedTuple):
    """Clips of one second: MFCCs `[N, T, 32]` as float32, word `[N]`, speaker `[N]`."""

    mfcc: Floats
    word: npt.NDArray[np.str_]
    speaker: npt.NDArray[np.str_]


class Parts(NamedTuple):
    """Masks `[N]` of the clips of the training, validation and test speakers."""

    train: Mask
    validation: Mask
    test: Mask


def load_clips(data_dir: Path) -> Clips:
    """Read the clips.

    Args:
        data_dir: Directory of `speech_commands_test_mfcc.npz` (arrays features, word, speaker).

    Returns:
        The clips, in the order of the file.

    Raises:
        FileNotFoundError: If the file is not there.
        ValueError: If it is damaged, or its arrays do not fit.
    """
    path = Path(data_dir) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"load_clips: data_dir must hold {FILE}, got none in {data_dir}")
    try:
        with np.load(path, allow_pickle=False) as file:
            clips = Clips(file["features"].astype(np.float32), file["word"], file["speaker"])
    except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"load_clips: {path} must be a whole file, got: {error}") from error
    rows = len(clips.mfcc)
    if clips.mfcc.ndim != 3 or clips.word.shape != (rows,) or clips.speaker.shape != (rows,):
        raise ValueError(
            "load_clips: features must be [N, T, C] with a word and a speaker each, got "
            f"{clips.mfcc.shape}, {clips.word.shape} and {clips.speaker.shape}"
        )
    if not np.isfinite(clips.mfcc).all():
        raise ValueError("load_clips: features must be finite, got NaN or infinite values")
    return clips


def split_speakers(clips: Clips, seed: int) -> Parts:
    """Deal the speakers out; background noise, which has none, is dealt out clip by clip.

    Args:
        clips: The clips.
        seed: Seed of the draw.

    Returns:
        60, 20 and 20 % of the speakers, and so of the noises. No voice is in two parts.

    Raises:
        ValueError: If there are fewer than five speakers.
    """
    owner = np.where(clips.word == SILENCE, "", clips.speaker).astype("<U32")
    noises = np.flatnonzero(owner == "")
    owner[noises] = [f"noise {number}" for number in range(len(noises))]
    rng = np.random.default_rng(seed)
    masks = [np.zeros(len(owner), bool) for _ in range(3)]
    speakers = np.unique(clips.speaker[clips.word != SILENCE])
    if len(speakers) < 5:
        raise ValueError(f"split_speakers: speakers must be >= 5, got {len(speakers)}")
    for names in (speakers, np.unique(owner[noises])):
        order = rng.permutation(names)
        stops = np.cumsum([TRAIN_SHARE, VALIDATION_SHARE]) * len(order)
        for mask, part in zip(masks, np.split(order, stops.round().astype(int)), strict=True):
            mask |= np.isin(owner, part)
    return Parts(*masks)


def filter_bank(mfcc: Floats) -> Floats:
    """Go back from all cepstral coefficients to the log energies of the filters, above `FLOOR`.

    Args:
        mfcc: `[*, C]`, all coefficients of an orthonormal DCT of C log energies.

    Returns:
        `[*, C]`.
    """
    energies: Floats = np.maximum(idct(mfcc, axis=-1, norm="ortho"), FLOOR).astype(np.float32)
    return energies


def coarse(energies: Floats) -> Floats:
    """Take means over `COARSE` frames and bands: words stay apart, with few numbers to a clip.

    Args:
        energies: Log energies of the filters, `[N, T, C]`; frames and bands left over are dropped.

    Returns:
        `[N, T // 7, C // 4]`.
    """
    frames, bands = (size // step for size, step in zip(energies.shape[1:], COARSE, strict=True))
    whole = energies[:, : frames * COARSE[0], : bands * COARSE[1]]
    blocks = whole.reshape(len(whole), frames, COARSE[0], bands, COARSE[1])
    means: Floats = blocks.mean((2, 4))
    return means


class Standard(NamedTuple):
    """Mean and deviation `[C]` of each coefficient over clips and frames of training."""

    mean: Floats
    deviation: Floats

    def __call__(self, features: Floats) -> Tensor:
        """Standardize features `[N, T, C]`."""
        return torch.from_numpy((features - self.mean) / (self.deviation + _EPSILON))


def standard_of(train: Floats) -> Standard:
    """Measure training clips `[N, T, C]`."""
    return Standard(train.mean((0, 1)), train.std((0, 1)))


@functools.cache
def autocast_dtype(whole: bool) -> torch.dtype | None:
    """Return the dtype that LSTMs train in, bfloat16.

    Args:
        whole: Whether it is a whole training. A quick one, whose numbers mean nothing, takes
            float32 (None) on a processor without LSTMs in bfloat16.

    Raises:
        ValueError: If the processor has none and it is a whole training.
    """
    try:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            nn.LSTM(1, 1)(torch.zeros(1, 1, 1))
    except RuntimeError:
        if whole:
            raise ValueError(
                "speech: the processor must run LSTMs in bfloat16, as the results have it (x86 "
                "needs AVX-512), got one that does not"
            ) from None
        return None
    return torch.bfloat16


def chrono_lstm(features: int, frames: int, seed: int, hidden: int = 128) -> LSTMClassifier:
    """Make an LSTM whose units remember from one to `frames` frames at the start.

    With torch's own start a unit forgets half of its state in each frame, so that the last hidden
    state sees little but the noise after the word. Biases of forget and input gates are log u and
    -log u with u uniform in [1, frames - 1] (Tallec and Ollivier, ICLR 2018).

    Args:
        features: Features of a frame.
        frames: Frames of a clip, >= 3.
        seed: Seed of the weights; torch's own generator is left as it was.
        hidden: Units.

    Returns:
        The network, one logit per clip.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = LSTMClassifier(features, hidden)
        chrono_(network.lstm, frames)
    return network


def chrono_(lstm: nn.LSTM, frames: int) -> None:
    """Set the biases of an LSTM of one layer as in `chrono_lstm`, from torch's own generator."""
    hidden = lstm.hidden_size
    with torch.no_grad():
        remember = torch.log(torch.empty(hidden).uniform_(1, frames - 1))
        lstm.bias_hh_l0.zero_()
        lstm.bias_ih_l0.zero_()
        lstm.bias_ih_l0[:hidden] = -remember  # gates in torch's order: input, forget, cell, output
        lstm.bias_ih_l0[hidden : 2 * hidden] = remember


def halved(energies: Floats, keep_first: Mask, seed: int) -> Floats:
    """Cut half of the word out of each clip: "mar" or "vin" of "marvin".

    The word is where a frame's mean log energy is above the middle between the clip's quiet level
    (10 % quantile) and its largest, from the first such frame to the last. The frames of one half
    are replaced by frames drawn from the rest of the clip, or, where less than a tenth of the clip
    is left, from its quietest tenth.

    Args:
        energies: Log energies of the filters, `[N, T, C]`.
        keep_first: `[N]`, whether the first half stays, else the second.
        seed: Seed of the draw.

    Returns:
        `[N, T, C]`, a copy.
    """
    rng = np.random.default_rng(seed)
    result = energies.copy()
    frames = energies.shape[1]
    for clip, level, first in zip(result, energies.mean(-1), keep_first, strict=True):
        start, stop = word_frames(level)
        rest = np.r_[0:start, stop:frames]
        if 10 * len(rest) < frames:
            rest = np.argsort(level)[: -(-frames // 10)]
        middle = (start + stop) // 2
        cut = slice(middle, stop) if first else slice(start, middle)
        clip[cut] = clip[rng.choice(rest, cut.stop - cut.start)]
    return result


def word_frames(level: Floats) -> tuple[int, int]:
    """Find the word in the levels `[T]` of a clip: its first frame, and the one after its last."""
    quiet, loud = np.quantile(level, 0.1), level.max()
    inside = np.flatnonzero(level >= (quiet + loud) / 2)
    return int(inside[0]), int(inside[-1]) + 1
