from torchtune_lite.cli.main import main

main()
