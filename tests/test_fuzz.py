"""A few thousand files changed at random: a right result or a UserError, and nothing else."""

import pytest

from tests import fuzzing

# Over all targets.
MUTATIONS = 3000


@pytest.mark.parametrize("name", fuzzing.TARGETS)
def test_changed_files(name):
    failures = fuzzing.run(name, round(MUTATIONS * fuzzing.TARGETS[name].share / 100))
    assert not failures, "\n".join(failures)


def test_all_mutations_are_shared_out():
    assert sum(target.share for target in fuzzing.TARGETS.values()) == 100
