/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_CLI_CLI_H
#define MOAT_CLI_CLI_H 1

/* The shape of moatctl: commands, options and what a command gets.
 *
 * Each family of commands is one file with an array of struct cli_command, listed
 * in main.c.  The parser has checked the number of arguments and that each option
 * belongs to the command before it calls run().  Output goes to stdout, everything
 * else to stderr.  run() returns the exit code. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CLI_OK 0
#define CLI_FAILED 1 /* said why on stderr */
#define CLI_USAGE 2

/* Options of commands.  One list: an option means the same everywhere.
 * X(SYMBOL, "name", letter or 0, "ARGUMENT" or NULL, "help") */
#define CLI_OPTIONS(X)                                                                             \
    X(VM, "vm", 0, "NAME", "only this VM")                                                         \
    X(VNIC, "vnic", 0, "ID", "only this vNIC")                                                     \
    X(PROTO, "proto", 0, "PROTO", "only this protocol: tcp, udp, icmp, icmp6 or a number")         \
    X(PEER, "peer", 0, "ADDRESS", "only with this remote address or prefix")                       \
    X(PORT, "port", 0, "N", "only with this local or remote port")                                 \
    X(STATE, "state", 0, "STATE", "only with a side in this state, such as established")           \
    X(COUNT, "count", 0, NULL, "print only how many there are")                                    \
    X(LIMIT, "limit", 0, "N", "print at most so many")                                             \
    X(EXPLAIN, "explain", 0, NULL, "say what each counter and reason means")                       \
    X(FOLLOW, "follow", 'f', NULL, "go on and print what comes, until interrupted")                \
    X(LOCAL, "local", 0, NULL, "from this host's engine, not from the database")                   \
    X(SEVERITY, "severity", 0, "LEVEL", "at least this severe: info, notice, warning, alarm")      \
    X(DRY_RUN, "dry-run", 0, NULL, "check everything, change nothing")                             \
    X(WAIT, "wait", 0, "SECONDS", "wait until all hosts enforce it, at most so long")              \
    X(IF_GENERATION, "if-generation", 0, "N", "only if generation N is the current one")           \
    X(IN_PLACE, "in-place", 'i', NULL, "write the result back to the file")                        \
    X(CHECK, "check", 0, NULL, "change nothing; fail if the text is not canonical")                \
    X(REFUSED, "refused", 0, NULL, "only packets that are refused")                                \
    X(PASSED, "passed", 0, NULL, "only packets that pass")                                         \
    X(WRITE, "write", 'w', "FILE", "the file to write; -: standard output")                        \
    X(FORCE, "force", 0, NULL, "replace the file if it is there")                                  \
    X(SNAPLEN, "snaplen", 0, "N", "at most so many bytes of each packet (2048)")                   \
    X(MAC, "mac", 0, "MAC", "a MAC of the VM; repeatable")                                         \
    X(ADDRESS, "address", 0, "ADDRESS", "an address or prefix of the VM; repeatable")              \
    X(NAME, "name", 0, "NAME", "the VM's name")                                                    \
    X(LABEL, "label", 0, "KEY=VALUE", "a label of the VM; repeatable")                             \
    X(INVENTORY, "inventory", 0, "FILE", "networks and VMs that the policy speaks of, as JSON")    \
    X(PICKUP, "pickup", 0, "SECONDS", "permitted TCP may begin mid-stream for so long")            \
    X(SUMMARY, "summary", 0, NULL, "print only the summary")

enum cli_option {
#define X(SYM, NAME, LETTER, ARG, HELP) CLI_OPT_##SYM,
    CLI_OPTIONS(X)
#undef X
        CLI_N_OPTIONS
};
#define CLI_O(SYM) (UINT64_C(1) << CLI_OPT_##SYM)

struct cli {
    const struct cli_command *command;
    const char *db_remote;
    const char *ctl_path;
    const char *private_key, *certificate, *ca_cert;
    bool json;
    bool has_timeout; /* somebody said how long */
    int timeout_s;
    const char *const *args; /* after the command's own words */
    size_t n_args;
    const char *opts[CLI_N_OPTIONS]; /* NULL: not given; "" if it takes no argument */
    const struct cli_given *given;   /* each time that one was given, in order */
    size_t n_given;
};

struct cli_given {
    enum cli_option option;
    const char *value;
};

struct cli_command {
    const char *name;     /* its words, as in "vm vnic add" */
    const char *synopsis; /* of its arguments */
    const char *summary;  /* a line without full stop */
    const char *detail;   /* more lines for help, or NULL */
    uint64_t options;     /* CLI_O(...) */
    size_t min_args, max_args;
    bool is_default; /* the family's first word alone means this one */
    int (*run)(const struct cli *);
};

/* Prints "moatctl: TEXT" to stderr.  Text from outside goes in as it is: control
 * characters are made visible here, newlines are kept. */
void cli_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* A line below an error: what to do about it. */
void cli_hint(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* cli_error() and where to find help; returns CLI_USAGE. */
int cli_usage(const struct cli *, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Reads an option that is a number in [min, max]; *value is left alone if it was
 * not given.  False: it is none, and that has been said. */
bool cli_number(const struct cli *, enum cli_option, int64_t min, int64_t max, int64_t *value);

/* The values of a repeatable option, one after the other: *i starts at 0.  NULL: no more. */
const char *cli_next(const struct cli *, enum cli_option, size_t *i);

extern const struct cli_command capture_commands[], engine_commands[], event_commands[],
    host_commands[], migration_commands[], network_commands[], policy_commands[],
    replay_commands[], rule_commands[], session_commands[], slot_commands[], status_commands[],
    trace_commands[], vm_commands[]; /* each ends with a NULL name */

#endif /* control/cli/cli.h */
