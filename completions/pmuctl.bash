# bash completion for pmuctl, version 4.4 or later           -*- shell-script -*-
# SPDX-License-Identifier: Apache-2.0
# Made by `pmuctl completion bash` from the command tree: do not change it here.

# What a command takes. An option is NAME[|NAME]..., then * if it can be given again, then
# :KIND if it takes a value; an operand is its KIND, with ... if there can be several.
# =WORD WORD... is a kind, too.
_pmuctl_tree() {
    commands='' operands=() columns=() options=()
    case $1 in
    '')
        commands='host pmu vm affinity completion conformance doctor help monitor run'
        options=(
            '--version'
            '-h|--help'
        )
        ;;
    'host')
        commands='info capabilities snapshot'
        options=('-h|--help')
        ;;
    'host info')
        columns=(
            KERNEL
            KVM
            KVM-MODE
            VPMU
            ATTRIBUTES
            EVENT-BITS
            DEFAULT
            DEFAULT-PMU
            STRICT
            CPUS
            ONLINE
            PMUS
            CORE-LIST
        )
        options=(
            '-o|--output:columns'
            '-O|--output-all'
            '-J|--json'
            '--format:=table json jsonl csv tsv raw name'
            '-n|--noheadings'
            '--no-truncate'
            '--color:=auto always never'
            '-q|--quiet'
            '-v|--verbose*'
            '--sysroot:directory'
            '-h|--help'
        )
        ;;
    'host capabilities')
        operands=('=IRQ INIT FILTER SET_PMU SET_NR_COUNTERS...')
        columns=(
            ATTRIBUTE
            NUMBER
            PRESENT
        )
        options=(
            '-o|--output:columns'
            '-O|--output-all'
            '-J|--json'
            '--format:=table json jsonl csv tsv raw name'
            '-n|--noheadings'
            '--no-truncate'
            '--color:=auto always never'
            '-q|--quiet'
            '-v|--verbose*'
            '-h|--help'
        )
        ;;
    'host snapshot')
        operands=('directory')
        options=(
            '--sysroot:directory'
            '-q|--quiet'
            '-v|--verbose*'
            '-h|--help'
        )
        ;;
    'pmu')
        commands='list show cpus'
        options=('-h|--help')
        ;;
    'pmu list')
        operands=('pmu...')
        columns=(
            NAME
            TYPE
            CORE
            CPUS
            ONLINE
            COUNTERS
            EVENTS
            EVENT-BITS
            PATH
            MIDR
            FORMATS
            CAPS
            EVENT-LIST
        )
        options=(
            '-o|--output:columns'
            '-O|--output-all'
            '-J|--json'
            '--format:=table json jsonl csv tsv raw name'
            '-n|--noheadings'
            '--no-truncate'
            '--color:=auto always never'
            '-q|--quiet'
            '-v|--verbose*'
            '--sysroot:directory'
            '-h|--help'
        )
        ;;
    'pmu show')
        operands=('pmu')
        columns=(
            NAME
            TYPE
            CORE
            CPUS
            ONLINE
            COUNTERS
            EVENTS
            EVENT-BITS
            PATH
            MIDR
            FORMATS
            CAPS
            EVENT-LIST
        )
        options=(
            '-o|--output:columns'
            '-O|--output-all'
            '-J|--json'
            '--format:=table json jsonl csv tsv raw name'
            '-n|--noheadings'
            '--no-truncate'
            '--color:=auto always never'
            '-q|--quiet'
            '-v|--verbose*'
            '--sysroot:directory'
            '-h|--help'
        )
        ;;
    'pmu cpus')
        operands=('cpus')
        columns=(
            CPU
            PMU
            CORE
            CAPACITY
            ONLINE
            MIDR
        )
        options=(
            '-o|--output:columns'
            '-O|--output-all'
            '-J|--json'
            '--format:=table json jsonl csv tsv raw name'
            '-n|--noheadings'
            '--no-truncate'
            '--color:=auto always never'
            '-q|--quiet'
            '-v|--verbose*'
            '--sysroot:directory'
            '-h|--help'
        )
        ;;
    'vm')
        commands='list show vcpus wait set release'
        options=('-h|--help')
        ;;
    'vm list')
        operands=('vm...')
        columns=(
            NAME
            STATE
            PID
            VCPUS
            PMU
            FILTER
            WINDOW
            ALIGNED
            MEANS
            AFFINITY
            HAS-PMU
            CANDIDATES
            SOURCE
            SEALED-BY
            SINCE
            PMU-TYPE
            PMU-ORIGIN
            COUNTERS
            COUNTERS-ORIGIN
            RULES
            FILTER-ORIGIN
            EVENT-BITS
            ATTRIBUTES
            VMM
            OWNER
            UUID
            SOCKET
            COMMAND
            APPLIED-BY
            APPLIED-AT
            VCPU-LIST
            PROBLEM
        )
        options=(
            '-o|--output:columns'
            '-O|--output-all'
            '-J|--json'
            '--format:=table json jsonl csv tsv raw name'
            '-n|--noheadings'
            '--no-truncate'
            '--color:=auto always never'
            '-q|--quiet'
            '-v|--verbose*'
            '--socket:file'
            '--deadline:text'
            '--sysroot:directory'
            '-h|--help'
        )
        ;;
    'vm show')
        operands=('vm')
        columns=(
            NAME
            STATE
            PID
            VCPUS
            PMU
            FILTER
            WINDOW
            ALIGNED
            MEANS
            AFFINITY
            HAS-PMU
            CANDIDATES
            SOURCE
            SEALED-BY
            SINCE
            PMU-TYPE
            PMU-ORIGIN
            COUNTERS
            COUNTERS-ORIGIN
            RULES
            FILTER-ORIGIN
            EVENT-BITS
            ATTRIBUTES
            VMM
            OWNER
            UUID
            SOCKET
            COMMAND
            APPLIED-BY
            APPLIED-AT
            VCPU-LIST
            PROBLEM
        )
        options=(
            '-o|--output:columns'
            '-O|--output-all'
            '-J|--json'
            '--format:=table json jsonl csv tsv raw name'
            '-n|--noheadings'
            '--no-truncate'
            '--color:=auto always never'
            '-q|--quiet'
            '-v|--verbose*'
            '--socket:file'
            '--deadline:text'
            '--sysroot:directory'
            '-h|--help'
        )
        ;;
    'vm vcpus')
        operands=('vm...')
        columns=(
            VM
            VCPU
            TID
            CPU
            AFFINITY
            PMU-CPUS
            ALIGNED
            HAS-PMU
            EVIDENCE
        )
        options=(
            '-o|--output:columns'
            '-O|--output-all'
            '-J|--json'
            '--format:=table json jsonl csv tsv raw name'
            '-n|--noheadings'
            '--no-truncate'
            '--color:=auto always never'
            '-q|--quiet'
            '-v|--verbose*'
            '--socket:file'
            '--deadline:text'
            '--sysroot:directory'
            '-h|--help'
        )
        ;;
    'vm wait')
        operands=('vm')
        options=(
            '--for:=open sealed running stopped aligned'
            '--timeout:text'
            '-q|--quiet'
            '-v|--verbose*'
            '--socket:file'
            '--deadline:text'
            '-h|--help'
        )
        ;;
    'vm set')
        operands=('vm' 'settings...')
        columns=(
            VM
            KEY
            OUTCOME
            VALUE
        )
        options=(
            '-o|--output:columns'
            '-O|--output-all'
            '-J|--json'
            '--format:=table json jsonl csv tsv raw name'
            '-n|--noheadings'
            '--no-truncate'
            '--color:=auto always never'
            '-q|--quiet'
            '-v|--verbose*'
            '--socket:file'
            '--deadline:text'
            '--dry-run'
            '-h|--help'
        )
        ;;
    'vm release')
        operands=('vm')
        columns=(
            VM
            KEY
            OUTCOME
            VALUE
        )
        options=(
            '-o|--output:columns'
            '-O|--output-all'
            '-J|--json'
            '--format:=table json jsonl csv tsv raw name'
            '-n|--noheadings'
            '--no-truncate'
            '--color:=auto always never'
            '-q|--quiet'
            '-v|--verbose*'
            '--socket:file'
            '--deadline:text'
            '--dry-run'
            '-h|--help'
        )
        ;;
    'affinity')
        commands='set align check'
        options=('-h|--help')
        ;;
    'affinity set')
        operands=('vm' 'cpus')
        columns=(
            VM
            VCPU
            TID
            OUTCOME
            AFFINITY
            BEFORE
        )
        options=(
            '--vcpu:text'
            '-o|--output:columns'
            '-O|--output-all'
            '-J|--json'
            '--format:=table json jsonl csv tsv raw name'
            '-n|--noheadings'
            '--no-truncate'
            '--color:=auto always never'
            '-q|--quiet'
            '-v|--verbose*'
            '--socket:file'
            '--deadline:text'
            '--dry-run'
            '-h|--help'
        )
        ;;
    'affinity align')
        operands=('vm...')
        columns=(
            VM
            VCPU
            TID
            OUTCOME
            AFFINITY
            BEFORE
        )
        options=(
            '--all'
            '-o|--output:columns'
            '-O|--output-all'
            '-J|--json'
            '--format:=table json jsonl csv tsv raw name'
            '-n|--noheadings'
            '--no-truncate'
            '--color:=auto always never'
            '-q|--quiet'
            '-v|--verbose*'
            '--socket:file'
            '--deadline:text'
            '--dry-run'
            '-k|--keep-going'
            '-h|--help'
        )
        ;;
    'affinity check')
        operands=('vm...')
        columns=(
            VM
            VCPU
            TID
            AFFINITY
            PMU-CPUS
            CPU
            CONSEQUENCE
            BLOCKER
            PMU
            OUTSIDE
            ALIGNED
            VM-ALIGNED
            HAS-PMU
        )
        options=(
            '--strict'
            '--managed'
            '-o|--output:columns'
            '-O|--output-all'
            '-J|--json'
            '--format:=table json jsonl csv tsv raw name'
            '-n|--noheadings'
            '--no-truncate'
            '--color:=auto always never'
            '-q|--quiet'
            '-v|--verbose*'
            '--socket:file'
            '--deadline:text'
            '--sysroot:directory'
            '-k|--keep-going'
            '-h|--help'
        )
        ;;
    'completion')
        operands=('=bash zsh fish')
        options=('-h|--help')
        ;;
    'conformance')
        operands=('file')
        columns=(
            CHECK
            RESULT
            DETAIL
            RULE
        )
        options=(
            '--apply:pmu'
            '-o|--output:columns'
            '-O|--output-all'
            '-J|--json'
            '--format:=table json jsonl csv tsv raw name'
            '-n|--noheadings'
            '--no-truncate'
            '--color:=auto always never'
            '-q|--quiet'
            '-v|--verbose*'
            '--deadline:text'
            '-h|--help'
        )
        ;;
    'doctor')
        operands=('vm...')
        columns=(
            ID
            SUBJECT
            RESULT
            WHY
            FIX
        )
        options=(
            '--symptom:=crosvm-fail-entry kvmtool-fail-entry cloud-hypervisor-fail-entry fail-entry qemu-spins kvmtool-pmu-busy pmu-busy qemu-init-vcpu several-core-kinds cache-registers qemu-cpu-model qemu-without-kvm pmu-interrupt-refused pmu-not-initialised migration-registers supervisor-gone run-ended guest-counts-nothing windows-divide-by-zero guest-has-no-pmu guest-reads-pmu no-vpmu no-pmu-interrupt few-counters guest-lacks-cpus affinity-refused no-cpuset-controller proxmox-start-failed'
            '-o|--output:columns'
            '-O|--output-all'
            '-J|--json'
            '--format:=table json jsonl csv tsv raw name'
            '-n|--noheadings'
            '--no-truncate'
            '--color:=auto always never'
            '-q|--quiet'
            '-v|--verbose*'
            '--socket:file'
            '--deadline:text'
            '--sysroot:directory'
            '-h|--help'
        )
        ;;
    'help')
        operands=('=host pmu vm affinity completion conformance doctor help monitor run' '=info capabilities snapshot list show cpus vcpus wait set release align check')
        options=('-h|--help')
        ;;
    'monitor')
        operands=('vm...')
        columns=(
            TIME
            EVENT
            VM
            WHAT
            PID
            VCPU
            TID
            PMU
            CPUS
        )
        options=(
            '--event*:=vm-started vm-ended vcpu-left vcpu-returned window settings released cpu-offline cpu-online pmu-offline repaired repair-failed lost'
            '--timeout:text'
            '--interval:text'
            '--repair'
            '-o|--output:columns'
            '-O|--output-all'
            '-J|--json'
            '--format:=table json jsonl csv tsv raw name'
            '-n|--noheadings'
            '--no-truncate'
            '--color:=auto always never'
            '-q|--quiet'
            '-v|--verbose*'
            '--socket:file'
            '--deadline:text'
            '-h|--help'
        )
        ;;
    'run')
        operands=('command...')
        options=(
            '--name:text'
            '--pmu:pmu'
            '--filter:text'
            '--affinity:where'
            '--hold'
            '--timeout:text'
            '--best-effort'
            '-J|--json'
            '-q|--quiet'
            '-v|--verbose*'
            '--dry-run'
            '-h|--help'
        )
        ;;
    esac
}

_pmuctl() {
    # a pattern that matches nothing is no error here
    if [[ :$BASHOPTS: == *:failglob:* ]]; then
        shopt -u failglob
        _pmuctl_complete
        shopt -s failglob
    else
        _pmuctl_complete
    fi
}

_pmuctl_complete() {
    local -
    set +fu
    local IFS=$' \t\n' line=${COMP_LINE:0:COMP_POINT} words=() starts=() space word i
    COMPREPLY=()

    # the words as they were typed, which COMP_WORDS has cut at = and :
    for ((i = 0; i <= COMP_CWORD; i++)); do
        space=${line%%[![:space:]]*} line=${line#"${line%%[![:space:]]*}"}
        word=${COMP_WORDS[i]}
        ((i < COMP_CWORD)) || word=$line
        if ((i)) && [[ ! $space ]]; then
            words[-1]+=$word
        else
            words+=("$word") starts+=("$i")
        fi
        line=${line#"$word"}
    done
    local cur=${words[-1]} kept=''
    unset 'words[-1]'
    if [[ $cur == [\'\"]* ]]; then
        cur=${cur:1}
    else
        # readline replaces only what comes after the last of these
        kept=${cur%"${cur##*["${COMP_WORDBREAKS:- }"]}"}
    fi
    if [[ ${words[-1]} == *[\<\>] || $cur == *[\<\>]* ]]; then
        compopt -o default
        return
    fi

    local commands operands columns options option names value
    local path='' given='' taken=() ended='' pending='' sysroot='' socket='' count=0 first=''
    _pmuctl_tree ''
    for word in "${words[@]:1}"; do
        count=$((count + 1))
        word=${word//[\\\'\"]/}
        if [[ $pending ]]; then
            _pmuctl_given "$pending" "$word"
            pending=''
            continue
        fi
        case ${ended:-$word} in
        --) ended=operands ;;
        --*=*) _pmuctl_given "${word%%=*}" "${word#*=}" ;;
        --*) _pmuctl_given "$word" && [[ $value ]] && pending=$word ;;
        -?*)
            for ((i = 1; i < ${#word}; i++)); do
                _pmuctl_given "-${word:i:1}" "${word:i+1}"
                [[ $value ]] || continue
                ((i + 1 < ${#word})) || pending=-${word:i:1}
                break
            done
            ;;
        *)
            if [[ ! $commands ]]; then
                taken+=("$word")
                if [[ ${operands[0]-} == command... ]]; then
                    first=$count
                    break
                fi
            elif [[ $word && " $commands " == *" $word "* ]]; then
                path+=${path:+ }$word
                _pmuctl_tree "$path"
            else
                return
            fi
            ;;
        esac
    done

    if [[ $first ]]; then
        _pmuctl_command "${starts[first]}"
        return
    elif [[ $pending ]]; then
        _pmuctl_option "$pending"
        _pmuctl_value "$value" '' "$cur"
    elif [[ ! $ended && $cur == --*=* ]]; then
        _pmuctl_option "${cur%%=*}" && _pmuctl_value "$value" "${cur%%=*}=" "${cur#*=}"
    elif [[ ! $ended && $cur == -[!-]?* ]]; then
        _pmuctl_option "${cur:0:2}" && _pmuctl_value "$value" "${cur:0:2}" "${cur:2}"
    elif [[ ! $ended && $cur == -* ]]; then
        for option in "${options[@]}"; do
            names=${option%%:*}
            if [[ $names == *\* || $given != *" $names "* ]]; then
                names=${names%\*}
                _pmuctl_offer '' "$cur" ${names//|/ }
            fi
        done
    elif [[ $commands ]]; then
        _pmuctl_offer '' "$cur" $commands
    else
        i=${#taken[@]}
        if ((i < ${#operands[@]})); then
            _pmuctl_value "${operands[i]%...}" '' "$cur"
        elif [[ ${operands[*]: -1} == *... ]]; then
            value=${operands[*]: -1}
            _pmuctl_value "${value%...}" '' "$cur"
        fi
    fi
    COMPREPLY=("${COMPREPLY[@]#"$kept"}")
}

# NAME: sets names, value to what the tree has of an option
_pmuctl_option() {
    value=''
    for option in "${options[@]}"; do
        names=${option%%:*}
        [[ "|${names%\*}|" == *"|$1|"* ]] || continue
        [[ $option != *:* ]] || value=${option#*:}
        return 0
    done
    return 1
}

# NAME [VALUE]: an option of the line
_pmuctl_given() {
    _pmuctl_option "$1" || return
    given+=" $names "
    [[ ${2-} == '~/'* ]] && set -- "$1" "$HOME${2:1}"
    case $1 in
    --sysroot) sysroot=${2-} ;;
    --socket) socket=${2-} ;;
    esac
    return 0
}

# PREFIX CUR WORD...: offers the words that begin with CUR
_pmuctl_offer() {
    local prefix=$1 cur=$2 word
    for word in "${@:3}"; do
        [[ $word != "$cur"* ]] || COMPREPLY+=("$prefix$word")
    done
}

# PREFIX CUR WORD...: the same in a comma list, for those that are not yet in it
_pmuctl_offer_list() {
    local prefix=$1 cur=$2 list=${2%"${2##*,}"} word
    for word in "${@:3}"; do
        [[ ",$list" == *",$word,"* ]] || _pmuctl_offer "$prefix$list" "${cur##*,}" "$word"
    done
    compopt -o nospace
}

# KIND PREFIX CUR
_pmuctl_value() {
    local prefix=$2 cur=$3 names=() word
    case $1 in
    =*)
        for word in ${1#=}; do
            [[ " ${taken[*]} " == *" $word "* ]] || names+=("$word")
        done
        _pmuctl_offer "$prefix" "$cur" "${names[@]}"
        ;;
    columns)
        [[ $cur != +* ]] || prefix+=+ cur=${cur#+}
        _pmuctl_offer_list "$prefix" "${cur^^}" "${columns[@]}"
        ;;
    pmu)
        if [[ $cur == core/* || $cur == cpus/* ]]; then
            mapfile -t names < <(
                command pmuctl __complete pmus "--sysroot=$sysroot" "${cur%%/*}" 2>/dev/null
            )
            _pmuctl_offer "$prefix" "${cur,,}" "${names[@]%%$'\t'*}"
            return
        fi
        _pmuctl_pmus
        _pmuctl_offer "$prefix" "$cur" "${names[@]}"
        if [[ $cur && (core/ == "$cur"* || cpus/ == "$cur"*) ]]; then
            _pmuctl_offer "$prefix" "$cur" core/ cpus/
            compopt -o nospace
        fi
        ;;
    vm)
        if [[ $sysroot || $cur == pid/* || $cur == uuid/* ]]; then
            mapfile -t names < <(
                command pmuctl __complete vms "--sysroot=$sysroot" "$cur" 2>/dev/null
            )
            for word in "${names[@]%%$'\t'*}"; do
                [[ " ${taken[*]} " == *" $word "* ]] || _pmuctl_offer "$prefix" "$cur" "$word"
            done
            return
        fi
        _pmuctl_vms
        _pmuctl_offer "$prefix" "$cur" "${names[@]}"
        ;;
    cpus)
        mapfile -t names < <(
            if [[ $sysroot ]]; then
                command pmuctl __complete cpus "--sysroot=$sysroot" 2>/dev/null
            else
                command pmuctl __complete cpus "--socket=$socket" "${taken[@]}" 2>/dev/null
            fi
        )
        _pmuctl_offer_list "$prefix" "$cur" "${names[@]%%$'\t'*}"
        ;;
    where)
        mapfile -t names < <(command pmuctl __complete cpus --socket= '' affinity 2>/dev/null)
        _pmuctl_offer_list "$prefix" "$cur" "${names[@]%%$'\t'*}"
        ;;
    settings) _pmuctl_settings ;;
    file) compopt -o default ;;
    directory) compopt -o dirnames ;;
    command)
        if [[ $cur == */* || $cur == '~'* ]]; then
            compopt -o default
        else
            mapfile -t COMPREPLY < <(compgen -c -- "$cur" 2>/dev/null)
        fi
        ;;
    esac
}

# OFFSET: completes the command whose name is the word of this number as if it stood alone
_pmuctl_command() {
    if declare -F _comp_command_offset >/dev/null; then
        _comp_command_offset "$1"
    elif declare -F _command_offset >/dev/null; then
        _command_offset "$1"
    else
        compopt -o default
    fi
}

# NAME: whether nothing in it can mean anything to a shell, and the line does not have it yet
_pmuctl_is_name() {
    local letters=abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789
    [[ $1 == [$letters]* && $1 != *[!${letters}_.-]* && ${#1} -le 64 &&
        " ${taken[*]} " != *" $1 "* ]]
}

_pmuctl_pmus() {
    local file
    for file in "$sysroot"/sys/bus/event_source/devices/*/cpus; do
        file=${file%/cpus}
        [[ -f $file/cpus ]] && _pmuctl_is_name "${file##*/}" && names+=("${file##*/}")
    done
}

_pmuctl_vms() {
    local directories directory file
    if [[ ${PMUCTL_RUNTIME_DIR-} ]]; then
        directories=("$PMUCTL_RUNTIME_DIR")
    elif ((EUID == 0)); then
        directories=(/run/pmuctl /run/user/*/pmuctl)
    else
        directories=(/run/pmuctl ${XDG_RUNTIME_DIR:+"$XDG_RUNTIME_DIR/pmuctl"})
    fi
    for directory in "${directories[@]}"; do
        for file in "$directory"/*.sock; do
            [[ -S $file && ! -L $file ]] || continue
            file=${file##*/} file=${file%.sock}
            _pmuctl_is_name "$file" && names+=("$file")
        done
    done
}

_pmuctl_settings() {
    local words=("${taken[@]:1}") left=' pmu counters affinity filter ' events i count
    count=${#words[@]}
    for ((i = 0; i < count; i += 2)); do
        if [[ ${words[i]} == filter ]]; then
            if ((i + 1 == count)); then
                _pmuctl_offer '' "$cur" default
            elif ((i + 2 == count || (count - i) % 2)); then
                _pmuctl_offer '' "$cur" allow deny
            else
                mapfile -t events < <(
                    command pmuctl __complete events "--socket=$socket" "${taken[@]}" 2>/dev/null
                )
                _pmuctl_offer_list '' "$cur" "${events[@]%%$'\t'*}"
            fi
            return
        elif ((i + 1 == count)); then
            case ${words[i]} in
            pmu)
                taken=()
                _pmuctl_value pmu '' "$cur"
                ;;
            affinity) _pmuctl_value cpus '' "$cur" ;;
            esac
            return
        fi
        left=${left/ ${words[i]} / }
    done
    _pmuctl_offer '' "$cur" $left
}

complete -F _pmuctl pmuctl
