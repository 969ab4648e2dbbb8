"""A set on disk as windows of batches on the device, at most two of them at a time."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from jaxpoison.data import StreamSplit
from jaxpoison.types import InputError

__all__ = ["Job", "Window", "Windows"]

READERS = min(16, os.cpu_count() or 1)  # decoding an image lets other threads run
BLOCK = 64  # rows a reader takes at a time


class Window(NamedTuple):
    """K batches on the device: image [K, B, H, W, C], label and row number [K, B].

    Rows that only fill the last batch have label -1.
    """

    image: Array
    label: Array
    rows: Array


class Job(NamedTuple):
    """What a window holds: batches number .. number + count - 1, of the rows `index`."""

    train: bool
    number: int
    count: int
    index: np.ndarray
    shape: tuple[int, int]


class Windows:
    """How the sets of a split are cut into windows under a cap of `max_bytes` on the device.

    Two windows at a time where two batches fit, else one; InputError where none does.
    """

    def __init__(
        self, split: StreamSplit, batch: int, max_bytes: int, mesh: Mesh | None, axis: str
    ):
        each = max(split.train.row_bytes, split.test.row_bytes) + 8  # and its label and number
        room = max_bytes // (batch * each)
        if not room:
            raise InputError(
                f"max_bytes = {max_bytes} does not hold a batch of {batch} rows of {each} bytes; "
                f"it must be at least {batch * each}"
            )
        self.slots = min(2, room)
        self.split, self.batch, self.length = split, batch, room // self.slots
        self._mesh, self._axis = mesh, axis

    def training(self, order: np.ndarray, *, drop_last: bool) -> Iterator[Job]:
        """The batches of an epoch in order; the last partial one in a window of its own size."""
        full = len(order) // self.batch
        length = min(self.length, full)
        for number in range(0, full, length):
            stop = min(number + length, full)
            index = order[number * self.batch : stop * self.batch]
            yield Job(True, number, stop - number, index, (length, self.batch))
        rest = order[full * self.batch :]
        if len(rest) and not drop_last:
            yield Job(True, full, 1, rest, (1, len(rest)))

    def testing(self) -> Iterator[Job]:
        """The test set; the last batch is filled up."""
        num = len(self.split.test)
        length = min(self.length, -(-num // self.batch))
        for start in range(0, num, length * self.batch):
            index = np.arange(start, min(start + length * self.batch, num))
            count = -(-len(index) // self.batch)
            yield Job(False, start, count, index, (length, self.batch))

    def through(self, jobs: list[Job], use: Callable[[Job, Window], Any]) -> None:
        """`use(job, window) -> arrays` for every job, at most `slots` windows alive at a time.

        A window is freed when its arrays are computed. Meanwhile other threads read the next one
        into host memory.
        """
        running: deque[tuple[Window, Any]] = deque()

        def free() -> None:
            window, result = running.popleft()
            jax.block_until_ready(result)
            for x in window:
                x.delete()

        with ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(READERS) as readers:
            ahead: deque[Future] = deque()
            for i, job in enumerate(jobs):
                soon = jobs[i + len(ahead) : i + 2]
                ahead.extend(pool.submit(self._read, x, readers) for x in soon)
                host = ahead.popleft().result()
                while len(running) >= self.slots:
                    free()
                place = self._place(job.shape[1])
                window = Window(*(jax.device_put(x, place) for x in host))
                running.append((window, use(job, window)))
            while running:
                free()

    def _read(self, job: Job, readers: Executor) -> list[np.ndarray]:
        """The arrays of a window, on the host; rows are read and decoded by several threads."""
        rows = self.split.train if job.train else self.split.test
        length, batch = job.shape
        num, full = len(job.index), length * batch
        image = np.zeros((full, *rows.image_shape), rows.dtype)
        label, number = np.full(full, -1, np.int32), np.zeros(full, np.int32)
        label[:num], number[:num] = rows.label[job.index], job.index

        def fill(start: int) -> None:
            stop = min(start + BLOCK, num)
            image[start:stop] = rows.read(job.index[start:stop])

        for _ in readers.map(fill, range(0, num, BLOCK)):
            pass
        return [x.reshape(length, batch, *x.shape[1:]) for x in (image, label, number)]

    def _place(self, batch: int) -> Any:
        if self._mesh is None:
            return None
        divides = batch % self._mesh.shape[self._axis] == 0
        return NamedSharding(self._mesh, P(None, self._axis) if divides else P())
