# fish completion for pmuctl, version 3.2 or later
# SPDX-License-Identifier: Apache-2.0
# Made by `pmuctl completion fish` from the command tree: do not change it here.

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
    set -l taking -o --output --format --color --sysroot --socket --deadline --for --timeout --vcpu --apply --symptom --event --interval --name --pmu --filter --affinity
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
        case 'host info'
            __pmuctl_list KERNEL 'its release' KVM 'whether this user can use /dev/kvm: usable, denied, missing' KVM-MODE 'how KVM runs: VHE, nVHE' VPMU 'whether guests can have a PMU' ATTRIBUTES 'the PMU attributes KVM has' EVENT-BITS 'the width of the event space' DEFAULT 'whose PMU a VM gets unasked: one, or that at-vcpu-init, at-attribute' DEFAULT-PMU 'that PMU, where it is always one' STRICT 'whether a VM can refuse a PMU by default' CPUS 'the CPUs there are' ONLINE 'those that are online' PMUS 'its CPU PMUs' CORE-LIST 'its CPUs by core model'
        case 'host capabilities'
            __pmuctl_list ATTRIBUTE 'KVM_ARM_VCPU_PMU_V3_ and this' NUMBER 'its number' PRESENT 'whether this kernel has it'
        case 'pmu list'
            __pmuctl_list NAME 'its name in sysfs' TYPE 'its perf type in this boot' CORE 'the core models of its online CPUs, by MIDR' CPUS 'the CPUs it counts on' ONLINE 'those that are online' COUNTERS 'its programmable counters, once host info has probed them' EVENTS 'how many named events it has' EVENT-BITS 'the width of its event space, once probed' PATH 'its path in sysfs' MIDR 'implementer and part number of its core models' FORMATS 'its format/ in sysfs' CAPS 'its caps/ in sysfs' EVENT-LIST 'its named events'
        case 'pmu show'
            __pmuctl_list NAME 'its name in sysfs' TYPE 'its perf type in this boot' CORE 'the core models of its online CPUs, by MIDR' CPUS 'the CPUs it counts on' ONLINE 'those that are online' COUNTERS 'its programmable counters, once host info has probed them' EVENTS 'how many named events it has' EVENT-BITS 'the width of its event space, once probed' PATH 'its path in sysfs' MIDR 'implementer and part number of its core models' FORMATS 'its format/ in sysfs' CAPS 'its caps/ in sysfs' EVENT-LIST 'its named events'
        case 'pmu cpus'
            __pmuctl_list CPU 'its number' PMU 'the PMU that counts on it' CORE 'its core model, by MIDR' CAPACITY 'its capacity, 1024 the largest' ONLINE 'whether it is online' MIDR 'implementer and part number of its core model'
        case 'vm list'
            __pmuctl_list NAME 'the VM\'s name' STATE 'waiting, starting, running, paused, orphaned, dead, denied, silent' PID 'the process of its VMM' VCPUS 'how many vCPUs it has' PMU 'the PMU it has, or those it can have' FILTER 'its event filter' WINDOW 'whether KVM still takes settings: open, sealed, none' ALIGNED 'whether no vCPU can leave its PMU' MEANS 'what it means where its vCPUs may be' AFFINITY 'where pmuctl last put its vCPUs' HAS-PMU 'whether it has a PMU' CANDIDATES 'the PMUs that KVM can have chosen' SOURCE 'who tells of it' SEALED-BY 'what closed its window' SINCE 'when its window was closed' PMU-TYPE 'the perf type of its PMU' PMU-ORIGIN 'who says which PMU it has' COUNTERS 'the number of counters it was given' COUNTERS-ORIGIN 'who says how many counters it has' RULES 'its event filter, as vm set takes it' FILTER-ORIGIN 'who says which filter it has' EVENT-BITS 'the width of its event space' ATTRIBUTES 'the PMU attributes its kernel has' VMM 'what its VMM calls itself' OWNER 'the user id its VMM runs as' UUID 'its UUID' SOCKET 'its control socket' COMMAND 'the command that pmuctl run started' APPLIED-BY 'who set it last under pmuctl run' APPLIED-AT 'when that was' VCPU-LIST 'its vCPUs' PROBLEM 'why it could not be asked'
        case 'vm show'
            __pmuctl_list NAME 'the VM\'s name' STATE 'waiting, starting, running, paused, orphaned, dead, denied, silent' PID 'the process of its VMM' VCPUS 'how many vCPUs it has' PMU 'the PMU it has, or those it can have' FILTER 'its event filter' WINDOW 'whether KVM still takes settings: open, sealed, none' ALIGNED 'whether no vCPU can leave its PMU' MEANS 'what it means where its vCPUs may be' AFFINITY 'where pmuctl last put its vCPUs' HAS-PMU 'whether it has a PMU' CANDIDATES 'the PMUs that KVM can have chosen' SOURCE 'who tells of it' SEALED-BY 'what closed its window' SINCE 'when its window was closed' PMU-TYPE 'the perf type of its PMU' PMU-ORIGIN 'who says which PMU it has' COUNTERS 'the number of counters it was given' COUNTERS-ORIGIN 'who says how many counters it has' RULES 'its event filter, as vm set takes it' FILTER-ORIGIN 'who says which filter it has' EVENT-BITS 'the width of its event space' ATTRIBUTES 'the PMU attributes its kernel has' VMM 'what its VMM calls itself' OWNER 'the user id its VMM runs as' UUID 'its UUID' SOCKET 'its control socket' COMMAND 'the command that pmuctl run started' APPLIED-BY 'who set it last under pmuctl run' APPLIED-AT 'when that was' VCPU-LIST 'its vCPUs' PROBLEM 'why it could not be asked'
        case 'vm vcpus'
            __pmuctl_list VM 'the VM' VCPU 'its number' TID 'its thread' CPU 'the CPU it was last on' AFFINITY 'the CPUs it may be on' PMU-CPUS 'the CPUs of its PMU, or of those it can have' ALIGNED 'whether it cannot leave its PMU' HAS-PMU 'whether its VM has a PMU' EVIDENCE 'who tells which thread it is: socket, qmp, debugfs, kvm-run, name'
        case 'vm set'
            __pmuctl_list VM 'the VM' KEY 'the setting' OUTCOME 'set, released, unchanged or planned' VALUE 'what it is now'
        case 'vm release'
            __pmuctl_list VM 'the VM' KEY 'the setting' OUTCOME 'set, released, unchanged or planned' VALUE 'what it is now'
        case 'affinity set'
            __pmuctl_list VM 'the VM' VCPU 'its number' TID 'its thread' OUTCOME 'set, unchanged or planned' AFFINITY 'the CPUs it may be on now' BEFORE 'the CPUs it might be on before'
        case 'affinity align'
            __pmuctl_list VM 'the VM' VCPU 'its number' TID 'its thread' OUTCOME 'set, unchanged or planned' AFFINITY 'the CPUs it may be on now' BEFORE 'the CPUs it might be on before'
        case 'affinity check'
            __pmuctl_list VM 'the VM' VCPU 'its number' TID 'its thread' AFFINITY 'the CPUs it may be on' PMU-CPUS 'the CPUs of its PMU' CPU 'the CPU it was last on' CONSEQUENCE 'what happens off its PMU, if it can leave it' BLOCKER 'what is in the way of affinity align' PMU 'its PMU' OUTSIDE 'the CPUs it may be on that are not of its PMU' ALIGNED 'whether it cannot leave its PMU' VM-ALIGNED 'whether no vCPU of the VM can leave its PMU' HAS-PMU 'whether its VM has a PMU'
        case 'conformance'
            __pmuctl_list CHECK 'its name' RESULT 'pass, fail or skip' DETAIL 'why it did not pass' RULE 'what has to hold'
        case 'doctor'
            __pmuctl_list ID 'the check' SUBJECT 'what was looked at' RESULT 'PASS, WARN or FAIL' WHY 'the reason' FIX 'what mends it'
        case 'monitor'
            __pmuctl_list TIME 'when it was seen' EVENT 'what has happened' VM 'the VM' WHAT 'the change, in words' PID 'the process of its VMM' VCPU 'the vCPU' TID 'its thread' PMU 'the PMU' CPUS 'the CPUs'
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
    set -l keys pmu counters affinity filter
    while set -q words[1]
        set -l count (count $words)
        if test $words[1] = filter
            if test $count -eq 1
                printf 'default\twhat becomes of all other events\n'
            else if test $count -eq 2; or test (math $count % 2) -eq 1
                printf '%s\n' allow deny
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
            case pmu
                printf '%s\t%s\n' pmu 'the PMU that the VM counts with'
            case counters
                printf '%s\t%s\n' counters 'the number of event counters'
            case affinity
                printf '%s\t%s\n' affinity 'the CPUs of the vCPU threads'
            case filter
                printf '%s\t%s\n' filter 'the events that the VM can count; must be last'
        end
    end
end

complete -c pmuctl -f
complete -c pmuctl -n '__pmuctl_next "" 0' -a host -d 'Show or capture this host'
complete -c pmuctl -n '__pmuctl_next "" 0' -a pmu -d 'List and show the CPU PMUs of this host'
complete -c pmuctl -n '__pmuctl_next "" 0' -a vm -d 'List VMs; set their PMU, counters, affinity and event filter'
complete -c pmuctl -n '__pmuctl_next "" 0' -a affinity -d 'Set, align and check the CPU affinity of vCPU threads'
complete -c pmuctl -n '__pmuctl_next "" 0' -a completion -d 'Print a shell completion script'
complete -c pmuctl -n '__pmuctl_next "" 0' -a conformance -d 'Test whether a VMM\'s control socket follows the protocol'
complete -c pmuctl -n '__pmuctl_next "" 0' -a doctor -d 'Find problems of this host and its VMs, and print the fixes'
complete -c pmuctl -n '__pmuctl_next "" 0' -a help -d 'Show the help of a command'
complete -c pmuctl -n '__pmuctl_next "" 0' -a monitor -d 'Print changes on this host as they happen'
complete -c pmuctl -n '__pmuctl_next "" 0' -a run -d 'Start an unmodified VMM with a PMU and an event filter'
complete -c pmuctl -n '__pmuctl_next "host" 0' -a info -d 'Show this host: its kernel, KVM, CPUs and PMUs'
complete -c pmuctl -n '__pmuctl_next "host" 0' -a capabilities -d 'Show which PMU attributes the KVM of this kernel has'
complete -c pmuctl -n '__pmuctl_next "host" 0' -a snapshot -d 'Capture the PMUs, CPUs and VMs of this host in a directory for --sysroot'
complete -c pmuctl -n '__pmuctl_next "host capabilities" 0 more' -a '(__pmuctl_unused IRQ INIT FILTER SET_PMU SET_NR_COUNTERS)'
complete -c pmuctl -n '__pmuctl_next "host snapshot" 0' -a '(__fish_complete_directories)'
complete -c pmuctl -n '__pmuctl_next "pmu" 0' -a list -d 'List the CPU PMUs of this host, or only the named ones'
complete -c pmuctl -n '__pmuctl_next "pmu" 0' -a show -d 'Show one PMU in full'
complete -c pmuctl -n '__pmuctl_next "pmu" 0' -a cpus -d 'List CPUs with their PMU, core model and capacity'
complete -c pmuctl -n '__pmuctl_next "pmu list" 0 more' -a '(__pmuctl_pmus)'
complete -c pmuctl -n '__pmuctl_next "pmu show" 0' -a '(__pmuctl_pmus)'
complete -c pmuctl -n '__pmuctl_next "pmu cpus" 0' -a '(__pmuctl_cpus)'
complete -c pmuctl -n '__pmuctl_next "vm" 0' -a list -d 'List the VMs of this host, or only the named ones'
complete -c pmuctl -n '__pmuctl_next "vm" 0' -a show -d 'Show one VM in full'
complete -c pmuctl -n '__pmuctl_next "vm" 0' -a vcpus -d 'List vCPUs, the CPU affinity of their threads, and whether they can leave their PMU'
complete -c pmuctl -n '__pmuctl_next "vm" 0' -a wait -d 'Wait until a VM reaches a state'
complete -c pmuctl -n '__pmuctl_next "vm" 0' -a set -d 'Set a VM\'s PMU, counters, affinity and event filter'
complete -c pmuctl -n '__pmuctl_next "vm" 0' -a release -d 'Release a waiting VM'
complete -c pmuctl -n '__pmuctl_next "vm list" 0 more' -a '(__pmuctl_vms)'
complete -c pmuctl -n '__pmuctl_next "vm show" 0' -a '(__pmuctl_vms)'
complete -c pmuctl -n '__pmuctl_next "vm vcpus" 0 more' -a '(__pmuctl_vms)'
complete -c pmuctl -n '__pmuctl_next "vm wait" 0' -a '(__pmuctl_vms)'
complete -c pmuctl -n '__pmuctl_next "vm set" 0' -a '(__pmuctl_vms)'
complete -c pmuctl -n '__pmuctl_next "vm set" 1 more' -a '(__pmuctl_settings)'
complete -c pmuctl -n '__pmuctl_next "vm release" 0' -a '(__pmuctl_vms)'
complete -c pmuctl -n '__pmuctl_next "affinity" 0' -a set -d 'Pin the vCPU threads of a VM'
complete -c pmuctl -n '__pmuctl_next "affinity" 0' -a align -d 'Restrict vCPU threads to the CPUs of their PMU again'
complete -c pmuctl -n '__pmuctl_next "affinity" 0' -a check -d 'Check whether vCPUs can leave the CPUs of their PMU'
complete -c pmuctl -n '__pmuctl_next "affinity set" 0' -a '(__pmuctl_vms)'
complete -c pmuctl -n '__pmuctl_next "affinity set" 1' -a '(__pmuctl_cpus)'
complete -c pmuctl -n '__pmuctl_next "affinity align" 0 more' -a '(__pmuctl_vms)'
complete -c pmuctl -n '__pmuctl_next "affinity check" 0 more' -a '(__pmuctl_vms)'
complete -c pmuctl -n '__pmuctl_next "completion" 0' -a 'bash zsh fish'
complete -c pmuctl -n '__pmuctl_next "conformance" 0' -F
complete -c pmuctl -n '__pmuctl_next "doctor" 0 more' -a '(__pmuctl_vms)'
complete -c pmuctl -n '__pmuctl_next "help" 0' -a 'host pmu vm affinity completion conformance doctor help monitor run'
complete -c pmuctl -n '__pmuctl_next "help" 1' -a 'info capabilities snapshot list show cpus vcpus wait set release align check'
complete -c pmuctl -n '__pmuctl_next "monitor" 0 more' -a '(__pmuctl_vms)'
complete -c pmuctl -n '__pmuctl_next "run" 0 more' -a '(__pmuctl_command)'
complete -c pmuctl -n '__pmuctl_takes --version -- ""' -l version -d 'Show the version and exit'
complete -c pmuctl -n '__pmuctl_takes -h --help -- "" "host" "host info" "host capabilities" "host snapshot" "pmu" "pmu list" "pmu show" "pmu cpus" "vm" "vm list" "vm show" "vm vcpus" "vm wait" "vm set" "vm release" "affinity" "affinity set" "affinity align" "affinity check" "completion" "conformance" "doctor" "help" "monitor" "run"' -s h -l help -d 'Show this message and exit'
complete -c pmuctl -n '__pmuctl_takes -o --output -- "host info" "host capabilities" "pmu list" "pmu show" "pmu cpus" "vm list" "vm show" "vm vcpus" "vm set" "vm release" "affinity set" "affinity align" "affinity check" "conformance" "doctor" "monitor"' -s o -l output -x -a '(__pmuctl_columns)' -d 'Columns to print; +COL adds to the default ones'
complete -c pmuctl -n '__pmuctl_takes -O --output-all -- "host info" "host capabilities" "pmu list" "pmu show" "pmu cpus" "vm list" "vm show" "vm vcpus" "vm set" "vm release" "affinity set" "affinity align" "affinity check" "conformance" "doctor" "monitor"' -s O -l output-all -d 'Print all columns'
complete -c pmuctl -n '__pmuctl_takes -J --json -- "host info" "host capabilities" "pmu list" "pmu show" "pmu cpus" "vm list" "vm show" "vm vcpus" "vm set" "vm release" "affinity set" "affinity align" "affinity check" "conformance" "doctor" "monitor"' -s J -l json -d 'Print one JSON object, as --format json does'
complete -c pmuctl -n '__pmuctl_takes --format -- "host info" "host capabilities" "pmu list" "pmu show" "pmu cpus" "vm list" "vm show" "vm vcpus" "vm set" "vm release" "affinity set" "affinity align" "affinity check" "conformance" "doctor"' -l format -x -a 'table json jsonl csv tsv raw name' -d 'Output format: table, json, jsonl, csv, tsv, raw, name'
complete -c pmuctl -n '__pmuctl_takes -n --noheadings -- "host info" "host capabilities" "pmu list" "pmu show" "pmu cpus" "vm list" "vm show" "vm vcpus" "vm set" "vm release" "affinity set" "affinity align" "affinity check" "conformance" "doctor" "monitor"' -s n -l noheadings -d 'Do not print the header line'
complete -c pmuctl -n '__pmuctl_takes --no-truncate -- "host info" "host capabilities" "pmu list" "pmu show" "pmu cpus" "vm list" "vm show" "vm vcpus" "vm set" "vm release" "affinity set" "affinity align" "affinity check" "conformance" "doctor" "monitor"' -l no-truncate -d 'Do not shorten values on a terminal'
complete -c pmuctl -n '__pmuctl_takes --color -- "host info" "host capabilities" "pmu list" "pmu show" "pmu cpus" "vm list" "vm show" "vm vcpus" "vm set" "vm release" "affinity set" "affinity align" "affinity check" "conformance" "doctor" "monitor"' -l color -x -a 'auto always never' -d 'Print colours and bold headings: auto, always or never'
complete -c pmuctl -n '__pmuctl_takes -q --quiet -- "host info" "host capabilities" "host snapshot" "pmu list" "pmu show" "pmu cpus" "vm list" "vm show" "vm vcpus" "vm wait" "vm set" "vm release" "affinity set" "affinity align" "affinity check" "conformance" "doctor" "monitor" "run"' -s q -l quiet -d 'Suppress notes, warnings, tables of changes and dry-run steps'
complete -c pmuctl -n '__pmuctl_takes -- "host info" "host capabilities" "host snapshot" "pmu list" "pmu show" "pmu cpus" "vm list" "vm show" "vm vcpus" "vm wait" "vm set" "vm release" "affinity set" "affinity align" "affinity check" "conformance" "doctor" "monitor" "run"' -s v -l verbose -d 'Print requests and kernel calls on stderr; -vv: also tracebacks of bugs'
complete -c pmuctl -n '__pmuctl_takes --sysroot -- "host info" "host snapshot" "pmu list" "pmu show" "pmu cpus" "vm list" "vm show" "vm vcpus" "affinity check" "doctor"' -l sysroot -x -a '(__fish_complete_directories)' -d 'Read a captured host from this directory instead of /'
complete -c pmuctl -n '__pmuctl_takes --socket -- "vm list" "vm show" "vm vcpus" "vm wait" "vm set" "vm release" "affinity set" "affinity align" "affinity check" "doctor" "monitor"' -l socket -r -F -d 'Use only this control socket, which may be in any directory'
complete -c pmuctl -n '__pmuctl_takes --deadline -- "vm list" "vm show" "vm vcpus" "vm wait" "vm set" "vm release" "affinity set" "affinity align" "affinity check" "conformance" "doctor" "monitor"' -l deadline -x -d 'Time limit in seconds for the exchange with each VMM (default 5)'
complete -c pmuctl -n '__pmuctl_takes --for -- "vm wait"' -l for -x -a 'open sealed running stopped aligned' -d 'State to wait for: open, sealed, running, stopped, aligned'
complete -c pmuctl -n '__pmuctl_takes --timeout -- "vm wait" "monitor"' -l timeout -x -d 'Time limit in seconds (default: none)'
complete -c pmuctl -n '__pmuctl_takes --dry-run -- "vm set" "vm release" "affinity set" "affinity align" "run"' -l dry-run -d 'Print the kernel calls that would be made, and change nothing'
complete -c pmuctl -n '__pmuctl_takes --vcpu -- "affinity set"' -l vcpu -x -d 'Change only these vCPUs, such as 0-1,3'
complete -c pmuctl -n '__pmuctl_takes --all -- "affinity align"' -l all -d 'Align all VMs that have a PMU'
complete -c pmuctl -n '__pmuctl_takes -k --keep-going -- "affinity align" "affinity check"' -s k -l keep-going -d 'Continue with the next VM if one fails; exit status 64 if only some fail'
complete -c pmuctl -n '__pmuctl_takes --strict -- "affinity check"' -l strict -d 'Exit with status 1 also if it is not known of a VM'
complete -c pmuctl -n '__pmuctl_takes --managed -- "affinity check"' -l managed -d 'Leave out VMs without settings of pmuctl'
complete -c pmuctl -n '__pmuctl_takes --apply -- "conformance"' -l apply -x -a '(__pmuctl_pmus)' -d 'Also apply this PMU and a filter and release the VM; use a throw-away VM'
complete -c pmuctl -n '__pmuctl_takes --symptom -- "doctor"' -l symptom -x -a 'crosvm-fail-entry kvmtool-fail-entry cloud-hypervisor-fail-entry fail-entry qemu-spins kvmtool-pmu-busy pmu-busy qemu-init-vcpu several-core-kinds cache-registers qemu-cpu-model qemu-without-kvm pmu-interrupt-refused pmu-not-initialised migration-registers supervisor-gone run-ended guest-counts-nothing windows-divide-by-zero guest-has-no-pmu guest-reads-pmu no-vpmu no-pmu-interrupt few-counters guest-lacks-cpus affinity-refused no-cpuset-controller proxmox-start-failed' -d 'Explain a message of a VMM or a guest'
complete -c pmuctl -n '__pmuctl_takes -- "monitor"' -l event -x -a 'vm-started vm-ended vcpu-left vcpu-returned window settings released cpu-offline cpu-online pmu-offline repaired repair-failed lost' -d 'Print only events of this type; may be given several times'
complete -c pmuctl -n '__pmuctl_takes --interval -- "monitor"' -l interval -x -d 'Seconds between two scans (default 1)'
complete -c pmuctl -n '__pmuctl_takes --repair -- "monitor"' -l repair -d 'Realign vCPUs that leave their PMU, as affinity align does'
complete -c pmuctl -n '__pmuctl_takes --format -- "monitor"' -l format -x -a 'table json jsonl csv tsv raw name' -d 'Output format: table, jsonl, csv, tsv, raw, name'
complete -c pmuctl -n '__pmuctl_takes --name -- "run"' -l name -x -d 'Name of the VM (default: VMM-PID)'
complete -c pmuctl -n '__pmuctl_takes --pmu -- "run"' -l pmu -x -a '(__pmuctl_pmus)' -d 'PMU of the VM'
complete -c pmuctl -n '__pmuctl_takes --filter -- "run"' -l filter -x -d 'Event filter, quoted: \'default deny allow cpu_cycles\''
complete -c pmuctl -n '__pmuctl_takes --affinity -- "run"' -l affinity -x -a '(__pmuctl_where)' -d 'CPUs of vCPUs: auto (the PMU\'s; default), none, CPUSET'
complete -c pmuctl -n '__pmuctl_takes --hold -- "run"' -l hold -d 'Hold the VMM, window open, until pmuctl vm release'
complete -c pmuctl -n '__pmuctl_takes --timeout -- "run"' -l timeout -x -d 'End the VMM if still held after SEC s; needs --hold'
complete -c pmuctl -n '__pmuctl_takes --best-effort -- "run"' -l best-effort -d 'Start the VMM even if settings cannot be applied'
complete -c pmuctl -n '__pmuctl_takes -J --json -- "run"' -s J -l json -d 'Print errors, warnings and dry-run steps as JSON'
