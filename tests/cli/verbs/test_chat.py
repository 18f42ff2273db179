from tests.demo_run import BASE


def test_the_recipe_is_asked_with_its_config(words):
    assert words("chat", BASE)[:3] == ["chat", "--config", "chat"]
