"""A program that knows nothing of numerge: arrays that other processes of it have too, rewritten round by
round, and computations with them whose results are known. The arrays are in memory that the script maps:
what numpy allocates comes from the C library's malloc, which maps it unseen.

For each line that it reads it makes a round, and writes a line. Ends with 0, or with 1 at the first result
that is wrong.
"""

import mmap
import os
import sys

import numpy

COUNT = 1 << 20
PARTS = 8
PART = COUNT // PARTS
SIDE = 512


def array(count, dtype):
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return numpy.frombuffer(mmap.mmap(-1, count * 8, flags=flags), dtype)


def expect(what, found, wanted):
    if found != wanted:
        sys.exit(f"arrays.py: {what}: {found}, not {wanted}")


def check(numbers, added, matrix):
    """Element i of `numbers` is i, and what was added to its part."""
    total = squares = 0
    for part, more in enumerate(added):
        first, last = part * PART + more, (part + 1) * PART + more - 1
        total += (first + last) * PART // 2
        below = lambda n: n * (n + 1) * (2 * n + 1) // 6
        squares += below(last) - below(first - 1)
    expect("sum", int(numbers.sum()), total)
    # In 64 bits, as numpy computes it.
    expect("scalar product", int(numbers.dot(numbers)) % 2**64, squares % 2**64)
    for part, more in enumerate(added):
        here = numbers[part * PART : (part + 1) * PART]
        there = numpy.arange(part * PART + more, (part + 1) * PART + more)
        expect(f"part {part}", bool((here == there).all()), True)
        expect("sorted", bool((numpy.sort(here[::-1]) == there).all()), True)
    # Of small whole numbers, so that it is exact.
    expect("matrix", bool((matrix @ matrix == product).all()), True)


numbers = array(COUNT, numpy.int64)
numbers[:] = numpy.arange(COUNT)
matrix = array(SIDE * SIDE, numpy.float64).reshape(SIDE, SIDE)
# Row i is i % 7 everywhere, so row i of its square is i % 7 times the sum of a column.
matrix[:] = (numpy.arange(SIDE) % 7)[:, None]
product = (numpy.arange(SIDE) % 7)[:, None] * float(sum(i % 7 for i in range(SIDE)))
added = [0] * PARTS

for round, _ in enumerate(sys.stdin):
    check(numbers, added, matrix)
    part = round % PARTS
    numbers[part * PART : (part + 1) * PART] += 1 + round
    added[part] += 1 + round
    check(numbers, added, matrix)
    child = os.fork()
    if child == 0:
        check(numbers, added, matrix)
        numbers[:] = -1
        os._exit(0 if int(numbers.sum()) == -COUNT else 1)
    numbers[:PART] += 1
    added[0] += 1
    expect("child", os.waitpid(child, 0)[1], 0)
    check(numbers, added, matrix)
    print("round", round, flush=True)
