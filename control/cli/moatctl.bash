# SPDX-License-Identifier: Apache-2.0
# Bash completion for moatctl. Names come from the database and the engine, asked
# with a short time-out; if they do not answer there are none to offer.

# Words before the cursor that are neither options nor their arguments, and the
# options that say where to ask.
_moatctl_words() {
    local i word
    words_=() where_=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        case $word in
        --db | --ctl | --private-key | --certificate | --ca-cert)
            # readline splits --db=REMOTE at "=" and "unix:FILE" at ":".
            local value=''
            [[ ${COMP_WORDS[i + 1]-} != "=" ]] || ((i++))
            ((i++))
            value=${COMP_WORDS[i]-}
            while [[ ${COMP_WORDS[i + 1]-} == : ]] && ((i + 1 < COMP_CWORD)); do
                value+=:${COMP_WORDS[i + 2]-}
                ((i += 2))
            done
            where_+=("$word=$value")
            ;;
        --write | -w | --snaplen | --mac | --address | --name | --label | --inventory | --pickup | \
            --format | --timeout | --vm | --vnic | --proto | --peer | --port | --state | --limit | --severity | \
            --wait | --if-generation)
            [[ ${COMP_WORDS[i + 1]-} != "=" ]] || ((i++))
            ((i++))
            ;;
        -*) ;;
        *) words_+=("$word") ;;
        esac
    done
}

_moatctl_ask() { # FILTER COMMAND...
    local filter=$1
    shift
    command -v jq >/dev/null || return
    moatctl "${where_[@]}" --timeout 1 --format json "$@" 2>/dev/null | jq -r "$filter // empty" 2>/dev/null
}
_moatctl_vms() { _moatctl_ask '.[].name' vm list; }
_moatctl_vnics() { _moatctl_ask '.[].vnics[]' vm list; }
_moatctl_networks() { _moatctl_ask '.[].name' network list; }
_moatctl_hosts() { _moatctl_ask '.[].name' host list; }

_moatctl_commands='status engine host network vm slot session rule event policy migration trace capture replay help'
declare -gA _moatctl_verbs=(
    [engine]='show replace'
    [host]='list set'
    [network]='list add del'
    [vm]='list show add set del quarantine release vnic'
    ['vm vnic']='add del'
    [slot]='list show'
    [session]='list flush'
    [rule]='list'
    [event]='list'
    [policy]='check apply show fmt base'
    [migration]='list show'
    [help]="$_moatctl_commands"
)
_moatctl_globals='--db= --ctl= --private-key= --certificate= --ca-cert= --format= --timeout= --help --version'
declare -gA _moatctl_options=(
    [slot]='--vm= --vnic= --explain'
    [session]='--vm= --vnic= --proto= --peer= --port= --state= --count --limit='
    [rule]='--vm= --vnic='
    [event]='--follow --limit= --vm= --vnic= --severity= --local'
    [migration]='--vm= --limit='
    [trace]='--vm= --vnic= --refused --passed --limit= --explain'
    [capture]='--vm= --vnic= --refused --passed --limit= --write= --force --snaplen='
    [replay]='--mac= --address= --name= --label= --inventory= --pickup= --refused --passed --explain --summary'
    ['vm quarantine']='--wait='
    ['vm release']='--wait='
    ['policy apply']='--dry-run --wait= --if-generation='
    ['policy fmt']='--in-place --check'
)

# Values of an option.
_moatctl_values() {
    case $1 in
    --vm) _moatctl_vms ;;
    --vnic) _moatctl_vnics ;;
    --proto) echo tcp udp icmp icmp6 sctp ;;
    --state) echo none syn-sent established closing fin-acked reset silent single multiple ;;
    --severity) echo info notice warning alarm ;;
    --format) echo table json ;;
    esac
}

# What may follow the words so far.
_moatctl_arguments() {
    case "${words_[*]:0:3}" in
    'vm show' | 'vm set' | 'vm del' | 'vm quarantine' | 'vm release') _moatctl_vms ;;
    'vm vnic add' | 'vm vnic del') [[ ${#words_[@]} == 3 ]] && _moatctl_vms ||
        { [[ ${words_[2]} != del ]] || _moatctl_vnics; } ;;
    'vm add '*) echo uuid= label host= ;;
    'vm set '*) echo name= label unlabel host= ;;
    'network del') _moatctl_networks ;;
    'network add '*) echo subnet= gateway= dhcp= metadata= router= ;;
    'host set') _moatctl_hosts ;;
    'slot show' | 'migration show')
        _moatctl_vms
        _moatctl_vnics
        ;;
    esac
}

_moatctl() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} words_ where_ option='' offered=''
    COMPREPLY=()
    if [[ $cur == = ]]; then
        option=$prev cur=
    elif [[ $prev == = ]]; then
        option=${COMP_WORDS[COMP_CWORD - 2]}
    elif [[ $prev == --* ]]; then
        option=$prev
    elif [[ $prev == -w ]]; then
        option=--write
    fi
    _moatctl_words

    case $option in
    --ctl | --private-key | --certificate | --ca-cert | --write | --inventory)
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        compopt -o filenames
        return
        ;;
    --vm | --vnic | --proto | --state | --severity | --format) offered=$(_moatctl_values "$option") ;;
    --db | --timeout | --peer | --port | --limit | --wait | --if-generation | --mac | --address | --name | --label | --pickup | --snaplen) return ;;
    network) [[ ${words_[*]:0:3} != 'vm vnic add' ]] || offered=$(_moatctl_networks) ;;
    host) offered=$(_moatctl_hosts) ;;
    esac

    if [[ -z $offered && $cur == -* ]]; then
        offered="$_moatctl_globals ${_moatctl_options[${words_[0]:-none}]-} ${_moatctl_options[${words_[*]:0:2}]-}"
    elif [[ -z $offered ]]; then
        if [[ ${#words_[@]} == 0 ]]; then
            offered=$_moatctl_commands
        elif [[ ${#words_[@]} == 1 && ${words_[0]} != replay ]]; then
            offered=${_moatctl_verbs[${words_[0]}]-}
        elif [[ ${words_[*]} == 'vm vnic' ]]; then
            offered=${_moatctl_verbs['vm vnic']}
        elif [[ ${words_[0]} == help && ${#words_[@]} == 2 ]]; then
            offered=${_moatctl_verbs[${words_[1]}]-}
        elif [[ ${words_[0]} == replay ]]; then
            mapfile -t COMPREPLY < <(compgen -f -- "$cur")
            compopt -o filenames
            return
        elif [[ ${words_[0]} == policy && ${words_[1]} =~ ^(check|apply|fmt)$ || ${words_[*]} == 'engine replace' ]]; then
            mapfile -t COMPREPLY < <(compgen -f -- "$cur")
            compopt -o filenames
            return
        elif [[ ${words_[*]:0:3} == 'vm vnic add' && ${#words_[@]} -ge 5 ]]; then
            offered='mac= network= address= allow='
        else
            offered=$(_moatctl_arguments)
        fi
    fi
    mapfile -t COMPREPLY < <(compgen -W "$offered" -- "$cur")
    [[ ${#COMPREPLY[@]} != 1 || ${COMPREPLY[0]} != *= ]] || compopt -o nospace
}
complete -F _moatctl moatctl
