/* SPDX-License-Identifier: Apache-2.0 */
/* moatctl: options, help, and which command runs.
 *
 * Options may stand anywhere before "--".  Whether one takes an argument does not
 * depend on the command, so the words of the command need not be known to parse
 * them; afterwards each option given is checked against the command's list. */

#include "cli.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "openvswitch/dynamic-string.h"
#include "openvswitch/vlog.h"
#include "text.h"
#include "util.h"

static const struct cli_command *const families[] = {
    status_commands,    engine_commands,  host_commands,    network_commands, vm_commands,
    slot_commands,      session_commands, rule_commands,    event_commands,   policy_commands,
    migration_commands, trace_commands,   capture_commands, replay_commands,
};

static const struct {
    const char *name;
    char letter;
    const char *arg, *help;
} options[] = {
#define X(SYM, NAME, LETTER, ARG, HELP) {NAME, LETTER, ARG, HELP},
    CLI_OPTIONS(X)
#undef X
};

enum global {
    G_DB,
    G_CTL,
    G_PRIVATE_KEY,
    G_CERTIFICATE,
    G_CA_CERT,
    G_FORMAT,
    G_TIMEOUT,
    G_HELP,
    G_VERSION,
    N_GLOBALS
};

static const struct {
    const char *name;
    char letter;
    const char *arg, *env, *fallback, *help;
} globals[] = {
    [G_DB] = {"db", 0, "REMOTE", "MOAT_DB", "unix:/run/moat/moatdb.sock", "the Moat database"},
    [G_CTL] = {"ctl", 0, "PATH", "MOAT_CTL", "/run/moat/moat.ctl", "this host's engine"},
    [G_PRIVATE_KEY] = {"private-key", 0, "FILE", "MOAT_PRIVATE_KEY", NULL, "key for ssl: remotes"},
    [G_CERTIFICATE] = {"certificate", 0, "FILE", "MOAT_CERTIFICATE", NULL, "its certificate"},
    [G_CA_CERT] = {"ca-cert", 0, "FILE", "MOAT_CA_CERT", NULL, "who signed the database's"},
    [G_FORMAT] = {"format", 0, "FORMAT", "MOAT_FORMAT", "table", "table or json"},
    [G_TIMEOUT] = {"timeout", 0, "SECONDS", NULL, "10", "how long to wait for an answer"},
    [G_HELP] = {"help", 'h', NULL, NULL, NULL, "what you see"},
    [G_VERSION] = {"version", 'V', NULL, NULL, NULL, "print the version"},
};

/* --- saying things ---------------------------------------------------------- */

static void say(const char *prefix, const char *format, va_list args)
{
    char *text = xvasprintf(format, args), *plain = text_lines(text);

    fflush(stdout);
    fprintf(stderr, "%s%s\n", prefix, plain);
    free(plain);
    free(text);
}

void cli_error(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    say("moatctl: ", format, args);
    va_end(args);
}

void cli_hint(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    say("  ", format, args);
    va_end(args);
}

int cli_usage(const struct cli *cli, const char *format, ...)
{
    va_list args;
    char *prefix =
        cli->command ? xasprintf("moatctl: %s: ", cli->command->name) : xstrdup("moatctl: ");

    va_start(args, format);
    say(prefix, format, args);
    va_end(args);
    free(prefix);
    if (cli->command)
        cli_hint("See: moatctl help %s", cli->command->name);
    else
        cli_hint("See: moatctl help");
    return CLI_USAGE;
}

static bool parse_number(const char *s, int64_t min, int64_t max, int64_t *value)
{
    char *end;

    errno = 0;
    long long v = strtoll(s, &end, 10);
    if (errno || end == s || *end || *s == ' ' || *s == '+' || v < min || v > max)
        return false;
    *value = v;
    return true;
}

bool cli_number(const struct cli *cli, enum cli_option opt, int64_t min, int64_t max,
                int64_t *value)
{
    if (!cli->opts[opt] || parse_number(cli->opts[opt], min, max, value))
        return true;
    cli_usage(cli, "--%s: \"%s\" is no number from %lld to %lld", options[opt].name, cli->opts[opt],
              (long long)min, (long long)max);
    return false;
}

const char *cli_next(const struct cli *cli, enum cli_option opt, size_t *i)
{
    while (*i < cli->n_given)
        if (cli->given[(*i)++].option == opt)
            return cli->given[*i - 1].value;
    return NULL;
}

/* --- help ------------------------------------------------------------------- */

static void print_option(const char *name, char letter, const char *arg, const char *help)
{
    char *left = letter ? xasprintf("-%c, --%s%s%s", letter, name, arg ? "=" : "", arg ? arg : "")
                        : xasprintf("    --%s%s%s", name, arg ? "=" : "", arg ? arg : "");

    printf("  %-26s %s\n", left, help);
    free(left);
}

static void print_globals(void)
{
    for (int i = 0; i < N_GLOBALS; i++) {
        struct ds help = DS_EMPTY_INITIALIZER;

        ds_put_cstr(&help, globals[i].help);
        if (globals[i].env)
            ds_put_format(&help, " ($%s%s%s)", globals[i].env, globals[i].fallback ? ", else " : "",
                          globals[i].fallback ? globals[i].fallback : "");
        else if (globals[i].fallback)
            ds_put_format(&help, " (%s)", globals[i].fallback);
        print_option(globals[i].name, globals[i].letter, globals[i].arg, ds_cstr(&help));
        ds_destroy(&help);
    }
}

static void print_help(void)
{
    printf("moatctl: the Moat firewall, of this host and of the cluster\n\n"
           "Usage: moatctl [OPTION]... COMMAND [ARGUMENT]...\n\n"
           "Commands:\n");
    for (size_t i = 0; i < ARRAY_SIZE(families); i++)
        for (const struct cli_command *c = families[i]; c->name; c++)
            printf("  %-18s %s\n", c->name, c->summary);
    printf("  %-18s %s\n", "help COMMAND", "say more about a command or a family of them");
    printf("\nOptions of all commands:\n");
    print_globals();
    printf("\nExit code: 0 done, 1 failed, 2 wrong usage.\n");
}

static void print_command(const struct cli_command *c)
{
    printf("Usage: moatctl %s%s%s%s\n\n%c%s.\n", c->name, c->options ? " [OPTION]..." : "",
           *c->synopsis ? " " : "", c->synopsis, *c->summary - 'a' + 'A', c->summary + 1);
    if (c->detail)
        printf("\n%s\n", c->detail);
    if (c->options) {
        printf("\nOptions:\n");
        for (int i = 0; i < CLI_N_OPTIONS; i++)
            if (c->options >> i & 1)
                print_option(options[i].name, options[i].letter, options[i].arg, options[i].help);
    }
}

/* Is `words` what c's name starts with, at the end of a word? */
static bool name_starts_with(const char *name, const char *words)
{
    size_t n = strlen(words);

    return !strncmp(name, words, n) && (!name[n] || name[n] == ' ');
}

static int help_command(const struct cli *cli, const char *const *words, size_t n_words)
{
    struct ds name = DS_EMPTY_INITIALIZER;
    int n = 0;

    for (size_t i = 0; i < n_words; i++)
        ds_put_format(&name, "%s%s", i ? " " : "", words[i]);
    for (int exact = 1; exact >= 0 && !n; exact--)
        for (size_t i = 0; i < ARRAY_SIZE(families); i++)
            for (const struct cli_command *c = families[i]; c->name; c++)
                if (exact ? !strcmp(c->name, ds_cstr(&name)) && n_words != 1
                          : name_starts_with(c->name, ds_cstr(&name))) {
                    if (n++)
                        printf("\n");
                    print_command(c);
                }
    if (!n)
        cli_usage(cli, "no command \"%s\"", ds_cstr(&name));
    else
        printf("\nOptions of all commands: moatctl help\n");
    ds_destroy(&name);
    return n ? CLI_OK : CLI_USAGE;
}

/* --- parsing ---------------------------------------------------------------- */

struct parsed {
    const char *globals[N_GLOBALS];
    const char *opts[CLI_N_OPTIONS];
    struct cli_given *given;
    size_t n_given;
    const char **words;
    size_t n_words;
};

/* Finds an option by long name (n bytes) or by letter.  Globals have numbers from
 * CLI_N_OPTIONS. */
static int find_option(const char *name, size_t n, char letter, bool *has_arg)
{
    for (int i = 0; i < CLI_N_OPTIONS; i++)
        if (name ? strlen(options[i].name) == n && !memcmp(options[i].name, name, n)
                 : options[i].letter == letter) {
            *has_arg = options[i].arg;
            return i;
        }
    for (int i = 0; i < N_GLOBALS; i++)
        if (name ? strlen(globals[i].name) == n && !memcmp(globals[i].name, name, n)
                 : globals[i].letter == letter) {
            *has_arg = globals[i].arg;
            return CLI_N_OPTIONS + i;
        }
    return -1;
}

static void set_option(struct parsed *p, int opt, const char *value)
{
    if (opt < CLI_N_OPTIONS) {
        p->opts[opt] = value;
        p->given[p->n_given++] = (struct cli_given){(enum cli_option)opt, value};
    } else {
        p->globals[opt - CLI_N_OPTIONS] = value;
    }
}

static bool parse_long(struct cli *cli, struct parsed *p, char **argv, int *i)
{
    const char *name = argv[*i] + 2, *eq = strchr(name, '=');
    size_t n = eq ? (size_t)(eq - name) : strlen(name);
    bool has_arg;
    int opt = find_option(name, n, 0, &has_arg);

    if (opt < 0) {
        cli_usage(cli, "unknown option --%.*s", (int)n, name);
        return false;
    }
    if (eq && !has_arg) {
        cli_usage(cli, "--%.*s takes no argument", (int)n, name);
        return false;
    }
    if (has_arg && !eq && !argv[*i + 1]) {
        cli_usage(cli, "--%s needs an argument", name);
        return false;
    }
    set_option(p, opt, eq ? eq + 1 : has_arg ? argv[++*i] : "");
    return true;
}

/* Letters in one word; the argument of the last is the rest of the word or the next one. */
static bool parse_letters(struct cli *cli, struct parsed *p, char **argv, int *i)
{
    for (const char *letters = argv[*i] + 1; *letters; letters++) {
        bool has_arg;
        int opt = find_option(NULL, 0, *letters, &has_arg);

        if (opt < 0) {
            cli_usage(cli, "unknown option -%c", *letters);
            return false;
        }
        if (!has_arg) {
            set_option(p, opt, "");
            continue;
        }
        if (!letters[1] && !argv[*i + 1]) {
            cli_usage(cli, "-%c needs an argument", *letters);
            return false;
        }
        set_option(p, opt, letters[1] ? letters + 1 : argv[++*i]);
        break;
    }
    return true;
}

static bool parse(struct cli *cli, struct parsed *p, char **argv)
{
    bool only_words = false;

    for (int i = 1; argv[i]; i++) {
        if (only_words || argv[i][0] != '-' || !argv[i][1]) {
            p->words[p->n_words++] = argv[i];
        } else if (!strcmp(argv[i], "--")) {
            only_words = true;
        } else if (argv[i][1] == '-') {
            if (!parse_long(cli, p, argv, &i))
                return false;
        } else if (!parse_letters(cli, p, argv, &i)) {
            return false;
        }
    }
    return true;
}

/* How many of the words are c's name; 0: it is another command. */
static size_t match_name(const struct cli_command *c, const struct parsed *p)
{
    const char *name = c->name;
    size_t n = 0;

    while (n < p->n_words) {
        size_t len = strcspn(name, " ");

        if (strlen(p->words[n]) != len || memcmp(name, p->words[n], len))
            return 0;
        n++;
        if (!name[len])
            return n;
        name += len + 1;
    }
    return 0;
}

static const struct cli_command *find_command(const struct parsed *p, size_t *n_words)
{
    const struct cli_command *best = NULL;

    *n_words = 0;
    for (size_t i = 0; i < ARRAY_SIZE(families); i++)
        for (const struct cli_command *c = families[i]; c->name; c++) {
            size_t n = match_name(c, p);

            if (!n && c->is_default && p->n_words == 1 && name_starts_with(c->name, p->words[0]))
                n = 1;
            if (n > *n_words) {
                best = c;
                *n_words = n;
            }
        }
    return best;
}

static int unknown_command(const struct cli *cli, const struct parsed *p)
{
    struct ds known = DS_EMPTY_INITIALIZER;

    for (size_t i = 0; i < ARRAY_SIZE(families); i++)
        for (const struct cli_command *c = families[i]; c->name; c++)
            if (name_starts_with(c->name, p->words[0]))
                ds_put_format(&known, "%s%s", known.length ? ", " : "", c->name);
    if (known.length) {
        cli_error("\"%s%s%s\" is no command", p->words[0], p->n_words > 1 ? " " : "",
                  p->n_words > 1 ? p->words[1] : "");
        cli_hint("There are: %s", ds_cstr(&known));
        cli_hint("See: moatctl help %s", p->words[0]);
    } else {
        cli_usage(cli, "\"%s\" is no command", p->words[0]);
    }
    ds_destroy(&known);
    return CLI_USAGE;
}

static bool set_globals(struct cli *cli, const struct parsed *p)
{
    const char *value[N_GLOBALS];
    int64_t timeout;

    for (int i = 0; i < N_GLOBALS; i++) {
        value[i] = p->globals[i];
        if (!value[i] && globals[i].env && getenv(globals[i].env) && *getenv(globals[i].env))
            value[i] = getenv(globals[i].env);
        if (!value[i])
            value[i] = globals[i].fallback;
    }
    cli->db_remote = value[G_DB];
    cli->ctl_path = value[G_CTL];
    cli->private_key = value[G_PRIVATE_KEY];
    cli->certificate = value[G_CERTIFICATE];
    cli->ca_cert = value[G_CA_CERT];
    cli->json = !strcmp(value[G_FORMAT], "json");
    if (!cli->json && strcmp(value[G_FORMAT], "table")) {
        cli_usage(cli, "--format: \"%s\" is neither table nor json", value[G_FORMAT]);
        return false;
    }
    if (!parse_number(value[G_TIMEOUT], 1, 86400, &timeout)) {
        cli_usage(cli, "--timeout: \"%s\" is no number of seconds from 1 to 86400",
                  value[G_TIMEOUT]);
        return false;
    }
    cli->timeout_s = (int)timeout;
    cli->has_timeout = p->globals[G_TIMEOUT];
    return true;
}

static bool check_command(struct cli *cli, const struct parsed *p)
{
    const struct cli_command *c = cli->command;

    for (int i = 0; i < CLI_N_OPTIONS; i++)
        if (p->opts[i] && !(c->options >> i & 1)) {
            cli_usage(cli, "--%s is no option of this command", options[i].name);
            return false;
        }
    if (cli->n_args < c->min_args) {
        cli_usage(cli, "too few arguments: it takes %s", c->synopsis);
        return false;
    }
    if (cli->n_args > c->max_args) {
        cli_usage(cli, "too many arguments: \"%s\"", cli->args[c->max_args]);
        return false;
    }
    return true;
}

static int run(struct cli *cli, struct parsed *p)
{
    size_t n;

    if (p->globals[G_VERSION]) {
        printf("moatctl %s\n", MOAT_VERSION);
        return CLI_OK;
    }
    if (p->n_words && !strcmp(p->words[0], "help")) {
        if (p->n_words == 1)
            print_help();
        return p->n_words == 1 ? CLI_OK : help_command(cli, p->words + 1, p->n_words - 1);
    }
    if (p->globals[G_HELP]) {
        cli->command = find_command(p, &n);
        if (cli->command)
            return help_command(cli, p->words, n);
        if (p->n_words)
            return help_command(cli, p->words, 1);
        print_help();
        return CLI_OK;
    }
    if (!p->n_words)
        return cli_usage(cli, "which command?");
    cli->command = find_command(p, &n);
    if (!cli->command)
        return unknown_command(cli, p);
    cli->args = p->words + n;
    cli->n_args = p->n_words - n;
    memcpy(cli->opts, p->opts, sizeof cli->opts);
    cli->given = p->given;
    cli->n_given = p->n_given;
    if (!check_command(cli, p) || !set_globals(cli, p))
        return CLI_USAGE;
    return cli->command->run(cli);
}

int main(int argc, char **argv)
{
    struct cli cli = {.command = NULL};
    struct parsed p = {.n_words = 0};

    set_program_name("moatctl");
    /* What goes wrong is said in our own words. */
    vlog_set_levels(NULL, VLF_ANY_DESTINATION, VLL_OFF);
    /* A server that goes away is an error, not the end of us. */
    signal(SIGPIPE, SIG_IGN);

    size_t room = 1; /* letters share words */

    for (int i = 1; i < argc; i++)
        room += 1 + (argv[i][0] == '-' ? strlen(argv[i]) : 0);
    p.words = xcalloc((size_t)argc + 1, sizeof *p.words);
    p.given = xcalloc(room, sizeof *p.given);
    int status = parse(&cli, &p, argv) ? run(&cli, &p) : CLI_USAGE;
    free(p.given);
    free(p.words);
    if (fflush(stdout) || ferror(stdout)) {
        /* A reader that went away, as in "| head", is no reason to complain. */
        if (errno == EPIPE)
            return status;
        cli_error("cannot write the output: %s", ovs_strerror(errno));
        return CLI_FAILED;
    }
    return status;
}
