"""Plain functions with faster ones beside them."""

from torchtune_lite.modules.replaceable import digest, replaceable


@replaceable
def double(x):
    """Return twice x."""
    return x * 2


def test_the_first_path_that_takes_the_arguments_computes():
    double.paths[:] = [lambda x: NotImplemented, lambda x: ("path", x) if x > 1 else NotImplemented]
    assert double(5) == ("path", 5)
    assert double(1) == 2
    double.paths.clear()
    assert double(5) == 10


def test_the_name_and_docstring_stay():
    assert double.__name__ == "double" and double.__doc__ == "Return twice x."


def one():
    def function(x):
        """Say one thing."""
        return x + 1

    return function


def commented():
    def function(x):
        """Say another."""
        # and comment on it
        return x + 1

    return function


def another():
    def function(x):
        """Say one thing."""
        return x + 2

    return function


def test_a_digest_is_of_the_code_alone():
    assert digest(one()) == digest(one()) != digest(another())
    assert digest(one()) == digest(commented())
    assert digest(len) is None
