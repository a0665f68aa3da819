# fish completion for pmuctl, version 3.2 or later
# SPDX-License-Identifier: Apache-2.0
@MADE@

# Sets __pmuctl_words to the words before the cursor that are no options, __pmuctl_given to the
# options, __pmuctl_sysroot and __pmuctl_socket to the values of these two; __pmuctl_ended where
# no options of pmuctl can follow.
function __pmuctl_read
    set -l line (commandline -pc)
    test "$line" = "$__pmuctl_line"; and return
    set -g __pmuctl_line $line
    set -g __pmuctl_words
    set -g __pmuctl_given
    set -g __pmuctl_sysroot ''
    set -g __pmuctl_socket ''
    set -l taking @TAKING@
    set -l pending ''
    set -g __pmuctl_ended ''
    for word in (commandline -opc)[2..-1]
        if test -n "$pending"
            __pmuctl_option $pending $word
            set pending ''
        else if test -n "$__pmuctl_ended"
            set -a __pmuctl_words $word
        else if test "$word" = --
            set __pmuctl_ended yes
        else if string match -q -- '--*=*' $word
            __pmuctl_option (string split -m 1 = -- $word)
        else if contains -- $word $taking
            set pending $word
        else if string match -q -- '--*' $word
            __pmuctl_option $word
        else if string match -q -- '-?*' $word
            set -l rest (string sub -s 2 -- $word)
            while test -n "$rest"
                set -l letter -(string sub -l 1 -- $rest)
                set rest (string sub -s 2 -- $rest)
                if not contains -- $letter $taking
                    __pmuctl_option $letter
                else if test -n "$rest"
                    __pmuctl_option $letter $rest
                    set rest ''
                else
                    set pending $letter
                end
            end
        else
            set -a __pmuctl_words $word
            # what follows a VMM is the VMM's
            test "$__pmuctl_words[1]" = run; and set -q __pmuctl_words[2]; and set __pmuctl_ended yes
        end
    end
end

function __pmuctl_option -a name value
    set -a __pmuctl_given $name
    switch $name
        case --sysroot
            set -g __pmuctl_sysroot (string replace -r '^~/' ~/ -- $value)
        case --socket
            set -g __pmuctl_socket (string replace -r '^~/' ~/ -- $value)
    end
end

# COMMAND COUNT [more]: whether an operand comes next, after so many others of it (or more)
function __pmuctl_next -a path count more
    __pmuctl_read
    set -l words (string split -n ' ' -- $path)
    set -l rest $__pmuctl_words
    for word in $words
        test "$rest[1]" = $word; or return
        set -e rest[1]
    end
    test (count $rest) -eq $count; or test -n "$more" -a (count $rest) -gt $count
end

# NAME... -- COMMAND...: whether it is one of these commands, and has none of these options yet
function __pmuctl_takes
    __pmuctl_read
    test -z "$__pmuctl_ended"; or return
    while test $argv[1] != --
        not contains -- $argv[1] $__pmuctl_given; or return
        set -e argv[1]
    end
    contains -- "$__pmuctl_words[1..2]" $argv[2..-1]; or contains -- "$__pmuctl_words[1]" $argv[2..-1]
end

# NAME DESCRIPTION...: offers these in a comma list, those that are not yet in it
function __pmuctl_list
    set -l token (string replace -r '^(--[^=]*=|-[^-])' '' -- (commandline -ct))
    set -l before (string match -r '^.*,|^\+|' -- $token)[1]
    set -l given (string split , -- (string trim -l -c + -- $before))
    while set -q argv[1]
        contains -- $argv[1] $given; or printf '%s%s\t%s\n' $before $argv[1] $argv[2]
        set -e argv[1..2]
    end
end

# WORD...: offers those that the line does not have yet
function __pmuctl_unused
    __pmuctl_read
    for word in $argv
        contains -- $word $__pmuctl_words[3..-1]; or echo $word
    end
end

function __pmuctl_columns
    __pmuctl_read
    switch "$__pmuctl_words[1..2]"
@COLUMNS@
    end
end

# NAME: whether nothing in it can mean anything to a shell, and the line does not have it yet
function __pmuctl_is_name -a name
    string match -q -r '^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$' -- $name
    and test (count $name) -eq 1
    and not contains -- $name $__pmuctl_words[3..-1]
end

function __pmuctl_pmus
    __pmuctl_read
    set -l token (string replace -r '^--[^=]*=' '' -- (commandline -ct))
    if set -l kind (string match -r -i -- '^(core|cpus)/' $token)
        command pmuctl __complete pmus --sysroot=$__pmuctl_sysroot (string lower $kind[2]) 2>/dev/null
        return
    end
    string match -q -r '^(c|co|cor|core)$' -- $token; and echo core/
    string match -q -r '^(c|cp|cpu|cpus)$' -- $token; and echo cpus/
    for file in $__pmuctl_sysroot/sys/bus/event_source/devices/*/cpus
        set -l name (string split / -- $file)[-2]
        test -f $file -a -r $file; and __pmuctl_is_name $name; or continue
        set -l cpus ''
        read cpus <$file 2>/dev/null
        if string match -q -r '^[0-9][0-9,-]*$' -- $cpus
            printf '%s\tCPUs %s\n' $name $cpus
        else
            echo $name
        end
    end
end

function __pmuctl_vms
    __pmuctl_read
    set -l token (commandline -ct)
    if test -n "$__pmuctl_sysroot"; or string match -q -r '^(pid|uuid)/' -- $token
        for line in (command pmuctl __complete vms --sysroot=$__pmuctl_sysroot "$token" 2>/dev/null)
            contains -- (string split \t -- $line)[1] $__pmuctl_words; or echo $line
        end
        return
    end
    set -l directories /run/pmuctl
    if test -n "$PMUCTL_RUNTIME_DIR"
        set directories $PMUCTL_RUNTIME_DIR
    else if test "$EUID" = 0
        set -a directories /run/user/*/pmuctl
    else if test -n "$XDG_RUNTIME_DIR"
        set -a directories $XDG_RUNTIME_DIR/pmuctl
    end
    for directory in $directories
        for file in $directory/*.sock
            set -l name (string replace -r '^.*/(.*)\.sock$' '$1' -- $file)
            if test -S $file; and not test -L $file; and __pmuctl_is_name $name
                echo $name
            end
        end
    end
end

# The command after `run` as if it stood alone
function __pmuctl_command
    __pmuctl_read
    complete -C (string join ' ' -- (string escape -- $__pmuctl_words[2..-1]) (commandline -ct))
end

function __pmuctl_cpus
    __pmuctl_read
    set -l of --socket=$__pmuctl_socket $__pmuctl_words[3..-1]
    test -n "$__pmuctl_sysroot"; and set of --sysroot=$__pmuctl_sysroot
    __pmuctl_list (command pmuctl __complete cpus $of 2>/dev/null | string split \t)
end

function __pmuctl_where
    __pmuctl_list (command pmuctl __complete cpus --socket= '' affinity 2>/dev/null | string split \t)
end

function __pmuctl_settings
    __pmuctl_read
    set -l words $__pmuctl_words[4..-1]
    set -l keys @KEYS@
    while set -q words[1]
        set -l count (count $words)
        if test $words[1] = filter
            if test $count -eq 1
                printf 'default\twhat becomes of all other events\n'
            else if test $count -eq 2; or test (math $count % 2) -eq 1
                printf '%s\n' @ACTIONS@
            else
                __pmuctl_list (command pmuctl __complete events --socket=$__pmuctl_socket \
                    $__pmuctl_words[3..-1] 2>/dev/null | string split \t)
            end
            return
        else if test $count -eq 1
            test $words[1] = pmu; and __pmuctl_pmus
            test $words[1] = affinity; and __pmuctl_cpus
            return
        end
        set keys (string match -v -- $words[1] $keys)
        set -e words[1..2]
    end
    for key in $keys
        switch $key
@KEY_HELP@
        end
    end
end

complete -c pmuctl -f
@TREE@
