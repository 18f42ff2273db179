import pytest

from torchtune_lite.data.tokenizers.template_compiler import MARKS, compile_template
from torchtune_lite.errors import DataError


def render(source, **variables):
    template = compile_template(source, "t", lambda form: f"date in {form}")
    return template.render({MARKS: ("<", ">"), **variables})


def test_answers_stand_between_the_marks_of_the_rendering():
    source = "{% for m in messages %}{%- generation -%}{{ m }}{%- endgeneration -%};{% endfor %}"
    assert render(source, messages="ab") == "<a>;<b>;"
    assert render(source, messages="ab", **{MARKS: ("", "")}) == "a;b;"


@pytest.mark.parametrize(
    "source, text",
    [
        ("{{ strftime_now('%Y') }}", "date in %Y"),
        ("{{ {'é': '<'} | tojson }}", '{"é": "<"}'),
        ("{% for i in [1, 2] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("  {% if true %}\nx\n  {% endif %}\n", "x\n"),
    ],
)
def test_what_templates_use(source, text):
    assert render(source) == text


def test_what_is_not_jinja_is_named_with_its_line():
    with pytest.raises(DataError, match="^t is not a Jinja template: line 2: "):
        render("x\n{% for %}")
