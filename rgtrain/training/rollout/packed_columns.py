"""Compact columns of samples, which are expanded only when verl's code reads them.

A batch of 4,096 samples of 1,300 tokens has 42 MB per column of 64-bit integers. Most columns carry little: masks are
ones, positions count up, a reward stands at the last token, and input ids repeat prompts and responses. Compact
columns store none of this. Workers receive them in this form and expand them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from tensordict import TensorDict
from tensordict.tensorclass import NonTensorStack
from torch import Tensor
from verl.utils import tensordict_utils as tu

from rgtrain.upstream.batch_shortcuts import jagged, row_lengths

# `tokens`: one value per token. `constant`: one value per row, at all of its tokens. `last`: one value per row at its
# last token, and zero before. `positions`: the number of each token within its row.
Form = Literal["tokens", "constant", "last", "positions"]


@dataclass(frozen=True, eq=False)
class PackedColumn:
    """Rows of different lengths.

    Attributes:
        form: The meaning of `values`.
        values: [tokens] for the form `tokens`, else [rows]. Rows may have further dimensions.
        lengths: [rows]. The number of tokens of each row.
        dtype: The type of the expanded values. `values` may have a smaller type.
    """

    form: Form
    values: Tensor
    lengths: Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, nested: Tensor) -> "PackedColumn":
        """Return the column of a jagged tensor, whose memory it shares."""
        column = cls("tokens", nested.values(), row_lengths(nested), nested.dtype)
        vars(column)["nested"] = nested
        return column

    @classmethod
    def positions(cls, lengths: Tensor) -> "PackedColumn":
        """Return the column of the positions in rows of `lengths`."""
        return cls("positions", lengths, lengths, torch.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def __reduce__(self) -> tuple[Any, ...]:
        return _received_column, (self.form, _Bytes(self.values), _Bytes(self.lengths), self.dtype)

    @cached_property
    def offsets(self) -> Tensor:
        """The first token of each row, and the number of all tokens."""
        return torch.nn.functional.pad(self.lengths.cumsum(0), (1, 0))

    def dense(self) -> Tensor:
        """Return one value per token, row after row."""
        if self.form == "tokens":
            return self.values.to(self.dtype)
        if self.form == "constant":
            return self.values.to(self.dtype).repeat_interleave(self.lengths)
        if self.form == "positions":
            starts = self.offsets[:-1].repeat_interleave(self.lengths)
            return torch.arange(len(starts)).sub_(starts)
        dense = torch.zeros(int(self.offsets[-1]), dtype=self.dtype)
        dense[self.offsets[1:] - 1] = self.values.to(self.dtype)
        return dense

    @cached_property
    def nested(self) -> Tensor:
        """The column as a jagged tensor."""
        return jagged(self.dense(), self.lengths)

    def rows(self) -> list[Tensor]:
        """Return the expanded rows."""
        return list(torch.split(self.dense(), self.lengths.tolist()))

    def row_bytes(self) -> list[bytes]:
        """Return the bytes of each expanded row."""
        return _row_bytes(self.dense(), self.offsets)

    def row_hashes(self) -> list[int]:
        """Return a hash of each row of the form `tokens`, equal for equal rows."""
        return list(map(hash, _row_bytes(self.values, self.offsets)))

    def row_sums(self) -> Tensor:
        """Return the sum of each row, [rows]."""
        if self.form == "last":
            return self.values.to(self.dtype)
        if self.form == "constant":
            return self.values.to(self.dtype) * self.lengths
        # An empty row would get the first token of the next one.
        is_filled = self.lengths > 0
        starts = self.offsets[:-1][is_filled].numpy()
        dense = self.dense().numpy()
        sums = torch.zeros(len(self), dtype=torch.float64)
        sums[is_filled] = torch.from_numpy(np.add.reduceat(dense, starts, dtype=np.float64))
        return sums.to(self.dtype)


def _row_bytes(tokens: Tensor, offsets: Tensor) -> list[bytes]:
    data = tokens.numpy().tobytes()
    return [data[start:end] for start, end in pairwise((offsets * tokens.element_size()).tolist())]


@dataclass(frozen=True, eq=False)
class JoinedColumn:
    """Rows that are a row of one column followed by the row of another."""

    first: PackedColumn
    second: PackedColumn

    def __len__(self) -> int:
        return len(self.first)

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the expanded rows.
        return JoinedColumn, (self.first, self.second)

    @cached_property
    def lengths(self) -> Tensor:
        """The number of tokens of each row."""
        return self.first.lengths + self.second.lengths

    @cached_property
    def nested(self) -> Tensor:
        """The column as a jagged tensor."""
        pairs = zip(self.first.rows(), self.second.rows(), strict=True)
        dense = torch.cat([part for pair in pairs for part in pair])
        return jagged(dense, self.lengths)

    def rows(self) -> list[Tensor]:
        """Return the expanded rows."""
        return list(self.nested.unbind())


# A tensor has one element per row, and a list any objects.
Column = PackedColumn | JoinedColumn | Tensor | list[Any]
# A column and the first and last row (exclusive) of a piece of it.
Piece = tuple[Any, int, int]


def as_column(values: Any) -> Column:
    """Return the column of a value of a TensorDict."""
    if not isinstance(values, Tensor):
        return list(values.tolist())
    if values.is_nested:
        # Only tensors that are ragged right after the rows can be cut by their values.
        return PackedColumn.of(values) if getattr(values, "_ragged_idx", 1) == 1 else list(values.unbind())
    if values.ndim == 1:
        return values
    # verl stacks rows that happen to have equal lengths.
    return PackedColumn("tokens", values.flatten(0, 1), torch.full((len(values),), values.shape[1]), values.dtype)


def column_of_rows(rows: Sequence[Any]) -> Column:
    """Return the column with the given rows: tensors of any lengths, numbers in tensors, or objects."""
    tensors = [row for row in rows if isinstance(row, Tensor)]
    if not tensors:
        return list(rows)
    # verl gives numbers to the rows with which it fills up a batch, which may have tensors elsewhere.
    if tensors[0].ndim == 0:
        return torch.stack([torch.as_tensor(row) for row in rows])
    return PackedColumn("tokens", torch.cat(list(rows)), torch.tensor([len(row) for row in rows]), rows[0].dtype)


def expanded(column: Column) -> Any:
    """Return a column as verl reads it in a TensorDict."""
    if isinstance(column, list):
        return NonTensorStack(*column)
    return column if isinstance(column, Tensor) else column.nested


def rows_of(column: Column) -> list[Any]:
    """Return the rows of a column."""
    if isinstance(column, list):
        return column
    return list(column.unbind()) if isinstance(column, Tensor) else column.rows()


def runs(rows: Sequence[int] | Tensor) -> list[tuple[int, int]]:
    """Return the first and last row (exclusive) of each run of consecutive rows, in the given order."""
    numbers = np.asarray(rows)
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    firsts, lasts = numbers[np.concatenate([[0], breaks])], numbers[np.concatenate([breaks, [len(numbers)]]) - 1]
    return list(zip(firsts.tolist(), (lasts + 1).tolist(), strict=True))


class Gatherer:
    """Joins pieces of columns. Equal pieces are joined once, so that columns of equal lengths share them."""

    def __init__(self) -> None:
        self._joined: dict[tuple[tuple[int, int, int], ...], Any] = {}
        # Identities are unique only as long as the objects exist.
        self._sources: list[Any] = []

    def join(self, pieces: Sequence[Piece]) -> Any:
        """Return the column with the rows of all pieces in their order."""
        if len(pieces) == 1 and pieces[0][1] == 0 and pieces[0][2] == len(pieces[0][0]):
            return pieces[0][0]
        key = tuple((id(column), start, stop) for column, start, stop in pieces)
        if key not in self._joined:
            self._sources.append(pieces)
            self._joined[key] = self._join(pieces)
        return self._joined[key]

    def _join(self, pieces: Sequence[Piece]) -> Any:
        columns = [column for column, _, _ in pieces]
        if all(isinstance(column, PackedColumn) for column in columns):
            return self._join_packed(pieces)
        if all(isinstance(column, JoinedColumn) for column in columns):
            first = self.join([(column.first, start, stop) for column, start, stop in pieces])
            return JoinedColumn(first, self.join([(column.second, start, stop) for column, start, stop in pieces]))
        if all(isinstance(column, Tensor) for column in columns):
            return torch.cat([column[start:stop] for column, start, stop in pieces])
        return column_of_rows([row for column, start, stop in pieces for row in rows_of(column)[start:stop]])

    def _join_packed(self, pieces: Sequence[Piece]) -> PackedColumn:
        lengths = self.join([(column.lengths, start, stop) for column, start, stop in pieces])
        forms, dtypes = {column.form for column, _, _ in pieces}, {column.dtype for column, _, _ in pieces}
        form: Form = pieces[0][0].form if len(forms) == 1 else "tokens"
        dtype = pieces[0][0].dtype
        if form == "positions":
            return PackedColumn.positions(lengths)
        if form != "tokens" and len(dtypes) == 1:
            of_rows = torch.cat([column.values[start:stop] for column, start, stop in pieces])
            return PackedColumn(form, of_rows, lengths, dtype)
        tokens = [column.values if column.form == "tokens" else column.dense() for column, _, _ in pieces]
        cut = [_cut(*piece) for piece in zip(tokens, pieces, strict=True)]
        return PackedColumn("tokens", torch.cat(cut), lengths, dtype)


def _cut(values: Tensor, piece: Piece) -> Tensor:
    """Return the tokens of a piece among all tokens of its column."""
    column, start, stop = piece
    if start == 0 and stop == len(column):
        return values
    first, last = column.offsets[start], column.offsets[stop]
    return values[first:last]


class PackedBatch:
    """Columns of the same samples, and constants of the batch. Pickled, it becomes a TensorDict of verl.

    Attributes:
        columns: The columns by name.
        constants: Further values by name.
    """

    def __init__(self, columns: Mapping[str, Column], constants: Mapping[str, Any] | None = None):
        self.columns = dict(columns)
        self.constants = dict(constants or {})

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __reduce__(self) -> tuple[Any, ...]:
        return received_batch, (self.columns, self.constants)

    def tensordict(self) -> TensorDict:
        """Return the batch as verl's code reads it."""
        return received_batch(self.columns, self.constants)


def part(batch: PackedBatch, rows: Sequence[int] | Tensor) -> PackedBatch:
    """Return some rows of a batch.

    Consecutive rows are copied together, so it takes time per run of rows rather than per row.

    Args:
        batch: The batch.
        rows: The numbers of the rows, in the order of the result. At least one.

    Returns:
        The part, with the same constants.
    """
    gatherer, pieces = Gatherer(), runs(rows)
    columns = {
        name: gatherer.join([(column, start, stop) for start, stop in pieces]) for name, column in batch.columns.items()
    }
    return PackedBatch(columns, batch.constants)


def received_batch(columns: Mapping[str, Column], constants: Mapping[str, Any]) -> TensorDict:
    """Return the TensorDict of columns and constants."""
    values = {name: expanded(column) for name, column in columns.items()}
    data = TensorDict(values, batch_size=len(next(iter(columns.values()))))
    for name, value in constants.items():
        tu.assign_non_tensor_data(data, name, value)
    return data


class _Bytes:
    """A tensor that is pickled as a NumPy array, whose memory Ray's object store takes without a further copy."""

    def __init__(self, tensor: Tensor):
        self._tensor = tensor

    def __reduce__(self) -> tuple[Any, ...]:
        tensor = self._tensor.contiguous()
        return _received_tensor, (tensor.view(torch.uint8).numpy(), tensor.dtype)


def _received_tensor(data: np.ndarray, dtype: torch.dtype) -> Tensor:
    # Memory of the object store is read-only.
    return torch.from_numpy(data.copy()).view(dtype)


def _received_column(form: Form, values: Tensor, lengths: Tensor, dtype: torch.dtype) -> PackedColumn:
    return PackedColumn(form, values, lengths, dtype)
