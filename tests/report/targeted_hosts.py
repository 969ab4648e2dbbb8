"""A targeted run whose setups go through two at once. Run as a module on each host:

python -m tests.report.targeted_hosts RUNS HOST:PORT,NUM,ID
"""

import sys

import jaxpoison as jp


def run(runs, **options):
    """The record of three setups, victims of one after another."""
    from tests.report import small_targeted  # its networks start jax

    setups = [small_targeted.setup(number) for number in range(3)]
    arms = {"gradient-matching": small_targeted.matching()}
    return small_targeted.run(runs, setups=setups, arms=arms, chunk=1, **options)


if __name__ == "__main__":
    jp.hosts.start(distributed=sys.argv[2])
    run(sys.argv[1], at_once=None)
