"""Print the script that lets a shell complete recipes, configs and the keys of the chosen config.

source <(tune completion bash)      in ~/.bashrc
source <(tune completion zsh)       in ~/.zshrc
"""

from argparse import ArgumentParser, Namespace

SCRIPTS = {
    # Bash takes `key=value` for three words, so what stands before the last `=` is taken off each answer.
    "bash": """\
_tune() {
  local line="${COMP_LINE:0:COMP_POINT}" word head="" each
  word="${line##*[[:space:]]}"
  [[ $word == *=* && $COMP_WORDBREAKS == *=* ]] && head="${word%=*}="
  COMPREPLY=()
  while IFS= read -r each; do COMPREPLY+=("${each#"$head"}"); done < <("$1" complete -- "$line" 2>/dev/null)
  [[ ${COMPREPLY[0]} == *[=/] ]] && compopt -o nospace 2>/dev/null
  return 0
}
complete -F _tune tune
""",
    "zsh": """\
_tune() {
  local -a found open closed
  found=("${(@f)$("$words[1]" complete -- "$LBUFFER" 2>/dev/null)}")
  open=(${(M)found:#*[=/]}) closed=(${found:#*[=/]})
  (( $#open )) && compadd -Q -S '' -- $open
  (( $#closed )) && compadd -Q -- $closed
  (( $#open + $#closed ))
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _tune tune
""",
}


def configure(parser: ArgumentParser) -> None:
    """Declare the argument of `tune completion`."""
    parser.add_argument("shell", choices=tuple(SCRIPTS), help="the shell that reads the script")


def main(args: Namespace) -> None:
    """Print the script."""
    print(SCRIPTS[args.shell], end="")
