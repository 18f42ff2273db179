def test_recipes_stand_beside_their_configs_and_aliases(tune):
    assert tune("ls").splitlines() == [
        "RECIPE                                   CONFIG",
        "both                                     both",
        "full_finetune_single_device              tiny/1M_full",
        "full_finetune_distributed                (the same script as full_finetune_single_device)",
        "generate                                 <>",
        "dev/generate_v2                          (the same script as generate)",
    ]
