# Completion of cni-py, flanneld and cni-agent for fish. Made by `cni-py completion fish`.
function __cni_py_complete
    set -l word (commandline -ct)
    set -l found (@PREFIX@/bin/cni-py __complete fish (commandline -opc) "$word" 2>/dev/null)
    switch "$found[1]"
        case :files :directories :commands
            set -l start (string match -r -- '^-[^=]*=' $word)
            set -l path (string replace -r -- '^-[^=]*=' '' $word)
            if test "$found[1]" = :directories
                __fish_complete_directories "$path" | string replace -r -- '^' "$start"
            else
                __fish_complete_path "$path" | string replace -r -- '^' "$start"
            end
        case '*'
            printf '%s\n' $found
    end
end
for program in cni-py flanneld cni-agent
    complete -c $program -f -a '(__cni_py_complete)'
end
