/* SPDX-License-Identifier: Apache-2.0 */
/* moatctl engine: the engine inside this host's switch, and replacing it while packets flow.
 *
 * Replacing asks an engine of any version, without HELLO: what was installed with this program
 * shall be able to follow what was installed before.  HELLO, where its version is spoken, tells
 * what served before and confirms what serves afterwards. */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"
#include "engine.h"
#include "out.h"
#include "text.h"
#include "timeval.h"
#include "util.h"

#define QUIET_MS 1000 /* then a person wants to know what takes so long */

/* --- show ------------------------------------------------------------------- */

static const struct out_column show_columns[] = {
    {"socket", "Engine", 0},
    {"version", "Version", 0},
    {"file", "Loaded from", 0},
    {"pid", "Process", 0},
    {"since", "Serves since", 0},
    {"uptime_s", "Running for", 0},
    {"mapping", "Mapping", 0},
    {"layout_version", NULL, 0},
    {"sessions_used", "Sessions", 0},
    {"sessions_max", NULL, 0},
    {"slots_used", "Slots", 0},
    {"slots_max", NULL, 0},
    {"replacements", "Engines before it", 0},
    {"packets_waited_us", "Packets waited for", 0},
};

static void put_waited(struct out *o, bool known, uint32_t us)
{
    if (known)
        out_value(o, "packets_waited_us", json_integer_create(us), text_microseconds(us));
    else
        out_value(o, "packets_waited_us", json_null_create(), xstrdup("-"));
}

static void put_engine(struct out *o, const struct cli *cli, const struct moat_ctl_hello *h)
{
    uint64_t age_s = h->now_s - MIN(h->now_s, h->started_s);

    out_row(o);
    out_string(o, "socket", cli->ctl_path);
    out_string(o, "version", h->engine);
    out_string(o, "file", h->file);
    out_integer(o, "pid", h->pid);
    out_time(o, "since", (int64_t)time(NULL) - (int64_t)MIN(age_s, (uint64_t)INT32_MAX));
    out_seconds(o, "uptime_s", (int64_t)MIN(age_s, (uint64_t)INT64_MAX));
    out_value(o, "mapping", json_text(h->mapping),
              xasprintf("%s (layout %u)", h->mapping, h->layout_version));
    out_integer(o, "layout_version", h->layout_version);
    out_value(o, "sessions_used", json_integer_create(h->sessions_used),
              xasprintf("%u of %u (%.1f%%)", h->sessions_used, h->sessions_max,
                        h->sessions_max ? 100.0 * h->sessions_used / h->sessions_max : 0.0));
    out_integer(o, "sessions_max", h->sessions_max);
    out_value(o, "slots_used", json_integer_create(h->slots_used),
              xasprintf("%u of %u", h->slots_used, h->n_slots));
    out_integer(o, "slots_max", h->n_slots);
    out_value(o, "replacements", json_integer_create(h->replacements),
              h->replacements ? xasprintf("%u since the switch started", h->replacements)
                              : xstrdup("none since the switch started"));
    put_waited(o, h->replacements, h->gate_us);
}

static void print_record(const struct cli *cli, struct out *o)
{
    if (cli->json)
        json_print(out_json_first(o), stdout);
    else
        out_print_record(o, stdout);
    out_destroy(o);
}

static int show_engine(const struct cli *cli)
{
    struct moat_ctl *c;
    struct out *o;

    if (!engine_open(cli, &c))
        return CLI_FAILED;
    o = out_create(show_columns, ARRAY_SIZE(show_columns), OUT_TABLE);
    put_engine(o, cli, moat_ctl_hello(c));
    print_record(cli, o);
    moat_ctl_close(c);
    return CLI_OK;
}

/* --- replace ---------------------------------------------------------------- */

static const struct out_column replace_columns[] = {
    {"version_before", NULL, 0},
    {"version", "Engine", 0},
    {"file", "Loaded from", 0},
    {"prepare_ms", "Prepared in", 0},
    {"packets_waited_us", "Packets waited for", 0},
    {"tries", "Tries", 0},
    {"replacements", "Engines before it", 0},
    {"confirmed", NULL, 0},
};

/* What HELLO says, if this program speaks the engine's version. */
struct look {
    bool known;
    struct moat_ctl_hello hello;
};

/* 0 or -EPROTONOSUPPORT: it is there. */
static int look_at(const struct cli *cli, struct look *l, char *why, size_t why_size)
{
    struct moat_ctl *c;
    int rc = engine_try_open(cli, &c, why, why_size);

    l->known = !rc;
    if (l->known) {
        l->hello = *moat_ctl_hello(c);
        moat_ctl_close(c);
    }
    return rc;
}

/* The file's absolute name, which the caller frees; "" if none was given.  NULL: it is not there,
 * and that has been said. */
static char *absolute(const struct cli *cli)
{
    char *path = cli->n_args ? realpath(cli->args[0], NULL) : xstrdup("");

    if (!path) {
        cli_error("%s: %s", cli->args[0], ovs_strerror(errno));
        cli_hint("The engine's file is libmoat-engine.so, beside libmoat.so; without a name it is "
                 "the one that the switch starts with.");
    } else if (strlen(path) >= MOAT_FILE_MAX) {
        cli_error("%s: a name of %zu bytes is too long", path, strlen(path));
        cli_hint("The engine takes names of up to %d bytes.", MOAT_FILE_MAX - 1);
        free(path);
        path = NULL;
    }
    return path;
}

/* 1: it has happened; 0: no answer in time; or the error. */
static int wait_for_it(struct moat_ctl *c, int timeout_ms, struct moat_ctl_replaced *done)
{
    long long began = time_msec(), passed = 0;
    bool told = !isatty(STDERR_FILENO);
    int rc;

    for (;;) {
        long long left = timeout_ms - passed;

        rc = moat_ctl_replaced(c, (int)(told ? left : MIN(left, QUIET_MS)), done);
        passed = time_msec() - began;
        if (rc || passed >= timeout_ms)
            return rc;
        if (!told && passed >= QUIET_MS) {
            fprintf(stderr, "waiting: the new engine is being prepared\n");
            told = true;
        }
    }
}

static void say_refused(const struct cli *cli, const struct moat_ctl *c, int rc)
{
    if (moat_ctl_is_dead(c)) {
        cli_error("lost the engine at %s before it answered: %s", cli->ctl_path, moat_ctl_error(c));
        cli_hint("Which engine serves: moatctl engine show");
        return;
    }
    cli_error("the engine was not replaced: %s", moat_ctl_error(c));
    switch (-rc) {
    case ENOENT:
        cli_hint("The switch must see the file under this name.");
        break;
    case ENOEXEC:
        cli_hint("The engine's file is libmoat-engine.so, built for this machine.");
        break;
    case EPROTONOSUPPORT:
    case EOPNOTSUPP:
        cli_hint("Only a restart of the switch changes between these two.");
        break;
    case EBUSY:
    case EAGAIN:
        cli_hint("Try again in a moment. Moves that are under way: moatctl migration list");
        break;
    }
    cli_hint("Nothing has changed: the engine that served goes on.");
}

/* Does the file have another name than the one that the switch starts with?  The first engine's
 * is known to be that; else it is not known, and said. */
static bool is_for_now_only(const char *file, const struct look *before)
{
    char *first = NULL;
    bool same;

    if (!*file)
        return false;
    if (before->known && !before->hello.replacements)
        first = realpath(before->hello.file, NULL);
    same = first && !strcmp(first, file);
    free(first);
    return !same;
}

static void put_result(struct out *o, const struct moat_ctl_replaced *done,
                       const struct look *before, const struct look *after)
{
    const char *was = before->known ? before->hello.engine : "(of another version)";

    out_row(o);
    out_value(o, "version_before",
              before->known ? json_text(before->hello.engine) : json_null_create(), NULL);
    out_value(o, "version", json_text(done->engine), xasprintf("%s -> %s", was, done->engine));
    if (after->known) {
        out_string(o, "file", after->hello.file);
        out_integer(o, "replacements", after->hello.replacements);
    } else {
        out_value(o, "file", json_null_create(), NULL);
        out_value(o, "replacements", json_null_create(), NULL);
    }
    out_value(o, "prepare_ms", json_integer_create(done->prepare_ms),
              text_microseconds((int64_t)done->prepare_ms * 1000));
    put_waited(o, true, done->gate_us);
    out_integer(o, "tries", done->tries);
    out_bool(o, "confirmed", after->known);
}

/* Is it the one that serves now?  Says so if not. */
static bool confirm(const struct cli *cli, const struct moat_ctl_replaced *done,
                    const struct look *before, struct look *after)
{
    char why[512] = "";
    int rc = look_at(cli, after, why, sizeof why);

    if (rc == -EPROTONOSUPPORT) {
        cli_hint("It speaks another version than this moatctl: use the one that came with it, and "
                 "restart moatd.");
        return true;
    }
    if (rc) {
        cli_error("engine %s took over, and cannot be reached at %s: %s", done->engine,
                  cli->ctl_path, *why ? why : ovs_strerror(-rc));
        return false;
    }
    if (before->known && (after->hello.pid != before->hello.pid ||
                          after->hello.replacements <= before->hello.replacements)) {
        cli_error("engine %s took over, but now %s serves, in process %" PRIu32
                  ": the switch has ended since",
                  done->engine, after->hello.engine, after->hello.pid);
        after->known = false;
        return false;
    }
    return true;
}

static int report(const struct cli *cli, const char *file, const struct look *before,
                  const struct moat_ctl_replaced *done)
{
    struct out *o = out_create(replace_columns, ARRAY_SIZE(replace_columns), OUT_TABLE);
    struct look after = {.known = false};
    bool ok = confirm(cli, done, before, &after);

    put_result(o, done, before, &after);
    print_record(cli, o);
    if (ok && is_for_now_only(file, before)) {
        fflush(stdout);
        cli_hint("The next start of the switch takes its own file again, not %s.", file);
    }
    return ok ? CLI_OK : CLI_FAILED;
}

static int replace_by(const struct cli *cli, const char *file, const struct look *before)
{
    int timeout_ms = cli->has_timeout ? cli->timeout_s * 1000 : MOAT_CTL_REPLACE_TIMEOUT_MS;
    struct moat_ctl_replaced done;
    struct moat_ctl *c;
    char why[512] = "";
    int rc = moat_ctl_connect(cli->ctl_path, cli->timeout_s * 1000, &c, why, sizeof why);

    if (rc) {
        engine_say_unreachable(cli, rc, why);
        return CLI_FAILED;
    }
    rc = moat_ctl_replace(c, file);
    if (!rc)
        rc = wait_for_it(c, timeout_ms, &done);
    if (rc < 0) {
        say_refused(cli, c, rc);
    } else if (!rc) {
        cli_error("no answer within %d s: another engine may still take over", timeout_ms / 1000);
        cli_hint("Which one serves: moatctl engine show");
    }
    moat_ctl_close(c);
    return rc > 0 ? report(cli, file, before, &done) : CLI_FAILED;
}

static int replace_engine(const struct cli *cli)
{
    struct look before;
    char why[512] = "", *file = absolute(cli);
    int status = CLI_FAILED, rc;

    if (!file)
        return CLI_FAILED;
    rc = look_at(cli, &before, why, sizeof why);
    if (rc && rc != -EPROTONOSUPPORT)
        engine_say_unreachable(cli, rc, why);
    else
        status = replace_by(cli, file, &before);
    free(file);
    return status;
}

const struct cli_command engine_commands[] = {
    {"engine show", "", "show the engine inside this host's switch", NULL, 0, 0, 0, true,
     show_engine},
    {"engine replace", "[FILE]", "replace the engine by another one while packets flow",
     "FILE is a libmoat-engine.so; without it, the file that the switch starts with, which\n"
     "is how an upgrade is taken into use. Sessions, rulesets and counters stay; packets\n"
     "wait for less than a millisecond. Preparing it takes as long as the tables need: it\n"
     "is waited for 120 seconds, or as --timeout says. If it is refused, nothing changes.",
     0, 0, 1, false, replace_engine},
    {.name = NULL},
};
