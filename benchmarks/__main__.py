"""All benchmarks of this device, and the tables of README.md from them.

    python -m benchmarks [--repeats 12] [--smoke --out DIR]

About half an hour on two quiet cores, estimated. The order: steps, mappings, convolution
forms, steps of generator attacks, crafting of gradient matching, attacks by added points,
training-time defenses, purifiers, unlearnable noise, unrolling.
"""

from benchmarks import (
    bench_conv,
    bench_defenses,
    bench_generator,
    bench_indiscriminate,
    bench_mapping,
    bench_matching,
    bench_purify,
    bench_step,
    bench_unlearnable,
    bench_unroll,
    harness,
    tables,
)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = harness.parser(__doc__).parse_args(arguments)
    common = ["--out", str(options.out)]
    common += ["--smoke"] if options.smoke else []
    timed = (bench_step, bench_mapping, bench_conv, bench_generator, bench_matching)
    later = (bench_indiscriminate, bench_defenses, bench_purify, bench_unlearnable)
    for benchmark in (*timed, *later):
        benchmark.main(["--repeats", str(options.repeats), *common])
    bench_unroll.main(common)
    if options.out == harness.RESULTS:
        tables.main([])


if __name__ == "__main__":
    main()
