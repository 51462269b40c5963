"""Completion for bash, as a script with all options and verbs written into it."""

from __future__ import annotations

from collections.abc import Sequence

from command_line import Command, CommandLine, Option

_TEMPLATE = """\
# bash completion for edged(8) and edgectl(1)

_edged_values()
{{
    if [[ $1 != hostname ]]; then compopt -o filenames; fi
    mapfile -t COMPREPLY < <(compgen -A "$1" -- "$cur")
}}

_edged()
{{
    local cur=${{COMP_WORDS[COMP_CWORD]}}
    case ${{COMP_WORDS[COMP_CWORD - 1]}} in
{edged_values}
    *) mapfile -t COMPREPLY < <(compgen -W "{edged_options}" -- "$cur") ;;
    esac
}}

_edgectl()
{{
    local cur=${{COMP_WORDS[COMP_CWORD]}} verb= options= words= i
    case ${{COMP_WORDS[COMP_CWORD - 1]}} in
{values}
    esac
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
        {valued}) ((i++)) ;;
        -*) ;;
        *) verb=${{COMP_WORDS[i]}}; break ;;
        esac
    done
    case $verb in
    "") words="{verbs}" ;;
{cases}
    esac
    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "{common} $options" -- "$cur")
    elif [[ $verb && ! $words ]]; then
        _edged_values file
    else
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
    fi
}}

complete -F _edged edged
complete -F _edgectl edgectl
"""


def script(line: CommandLine) -> str:
    """Return the script for edgectl and edged."""
    everything = [*line.common, *(option for verb in line.verbs.values() for option in verb.options)]
    return _TEMPLATE.format(
        edged_values=_values(line.edged.options, ""),
        edged_options=_names(line.edged.options),
        values=_values(everything, "return "),
        valued=" | ".join(name for option in line.common if option.value for name in option.names),
        verbs=" ".join(line.verbs),
        cases="\n".join(_case(verb, command) for verb, command in line.verbs.items()),
        common=_names(line.common) + " --help",
    )


def _case(verb: str, command: Command) -> str:
    choices = " ".join(choice for word in command.words for choice in word.choices)
    return f'    {verb}) options="{_names(command.options)}" words="{choices}" ;;'


def _values(options: Sequence[Option], ends: str) -> str:
    """Return the cases of options with a value; the completion is a file unless more is known."""
    kinds: dict[str, dict[str, None]] = {}
    for option in options:
        if option.value:
            kind = "directory" if option.value == "DIR" else "hostname" if "HOST" in option.value else "file"
            kinds.setdefault(kind, {}).update(dict.fromkeys(option.names))
    return "\n".join(f"    {' | '.join(names)}) _edged_values {kind}; {ends};;" for kind, names in kinds.items())


def _names(options: Sequence[Option]) -> str:
    return " ".join(name for option in options for name in option.names)
