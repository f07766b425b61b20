/* SPDX-License-Identifier: Apache-2.0 */
/* moatctl event: what happened, from the database (all hosts) or from this host's
 * engine.
 *
 * Events of the database are known by their rows' UUIDs: after a lost connection the
 * whole table comes again, and only what was not printed yet is printed. */

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "db.h"
#include "engine.h"
#include "out.h"
#include "ovsdb-idl.h"
#include "packet.h"
#include "text.h"
#include "timeval.h"
#include "util.h"
#include "uuidset.h"

static const char *const severities[] = {"info", "notice", "warning", "alarm"};

static const struct out_column columns[] = {
    {"time", "TIME", OUT_LEAST(27)}, {"severity", "SEVERITY", 0},
    {"host", "HOST", OUT_LEAST(8)},  {"vm", "VM", OUT_LEAST(10)},
    {"vnic", "VNIC", OUT_LEAST(10)}, {"kind", "KIND", OUT_LEAST(12)},
    {"message", "MESSAGE", 0},       {"details", NULL, 0},
};

static const struct out_column local_columns[] = {
    {"time", "TIME", OUT_LEAST(27)},
    {"type", "TYPE", OUT_LEAST(13)},
    {"vnic", "VNIC", OUT_LEAST(10)},
    {"message", "MESSAGE", 0},
    {"seq", NULL, 0},
    {"path", NULL, 0},
    {"reason", NULL, 0},
    {"rule", NULL, 0},
    {"value", NULL, 0},
    {"generation", NULL, 0},
    {"frame_len", NULL, 0},
    {"flow", NULL, 0},
    {"text", NULL, 0},
};

static enum out_format format_of(const struct cli *cli)
{
    return !cli->json ? OUT_TABLE : cli->opts[CLI_OPT_FOLLOW] ? OUT_JSON_LINES : OUT_JSON;
}

static int rank(const char *severity)
{
    for (size_t i = 0; i < ARRAY_SIZE(severities); i++)
        if (!strcmp(severity, severities[i]))
            return (int)i;
    return -1;
}

/* --- from the database ------------------------------------------------------ */

struct watch {
    const struct cli *cli;
    struct db db;
    struct uuidset seen;
    struct out *out;
    int least; /* severity */
};

static bool wanted(const struct watch *w, const struct moatrec_event *e)
{
    const char *vm = w->cli->opts[CLI_OPT_VM], *vnic = w->cli->opts[CLI_OPT_VNIC];

    return rank(e->severity) >= w->least && (!vm || !strcmp(e->vm, vm)) &&
           (!vnic || !strcmp(e->vnic_id, vnic));
}

static int compare(const void *a, const void *b)
{
    const struct moatrec_event *const *x = a, *const *y = b;

    if ((*x)->time_us != (*y)->time_us)
        return (*x)->time_us < (*y)->time_us ? -1 : 1;
    return strcmp((*x)->host, (*y)->host);
}

static void put_event(struct out *o, const struct moatrec_event *e)
{
    out_row(o);
    out_time_us(o, "time", e->time_us);
    out_string(o, "severity", e->severity);
    out_string(o, "host", e->host);
    out_string(o, "vm", e->vm);
    out_string(o, "vnic", e->vnic_id);
    out_string(o, "kind", e->kind);
    out_string(o, "message", e->message);
    out_smap(o, "details", &e->details);
}

/* Prints what was not printed yet, oldest first, of that the last `limit`. */
static void print_new(struct watch *w, int64_t limit)
{
    const struct moatrec_event *e, **all = NULL;
    size_t n = 0, allocated = 0;

    MOATREC_EVENT_FOR_EACH(e, w->db.idl)
    {
        if (uuidset_contains(&w->seen, &e->header_.uuid))
            continue;
        uuidset_insert(&w->seen, &e->header_.uuid);
        if (!wanted(w, e))
            continue;
        if (n >= allocated)
            all = x2nrealloc(all, &allocated, sizeof *all);
        all[n++] = e;
    }
    if (n)
        qsort(all, n, sizeof *all, compare);
    for (size_t i = n - MIN(n, (uint64_t)limit); i < n; i++)
        put_event(w->out, all[i]);
    out_flush(w->out, stdout);
    fflush(stdout);
    free(all);
}

static void follow(struct watch *w)
{
    bool connected = true;

    ovsdb_idl_enable_reconnect(w->db.idl);
    while (!ferror(stdout)) {
        if (db_wait_change(&w->db, time_msec() + 1000))
            print_new(w, INT64_MAX);
        if (ovsdb_idl_is_connected(w->db.idl) != connected) {
            connected = !connected;
            cli_error(connected ? "the Moat database is back"
                                : "lost the Moat database; trying again");
        }
    }
}

static int list_from_db(const struct cli *cli)
{
    const char *severity = cli->opts[CLI_OPT_SEVERITY];
    struct watch w = {.cli = cli};
    int64_t limit = cli->opts[CLI_OPT_FOLLOW] ? 10 : 100;

    if (!cli_number(cli, CLI_OPT_LIMIT, 0, INT64_MAX, &limit))
        return CLI_USAGE;
    if (severity && (w.least = rank(severity)) < 0)
        return cli_usage(cli, "--severity: \"%s\" is none of info, notice, warning, alarm",
                         severity);
    if (!db_open(&w.db, cli, DB_EVENT))
        return CLI_FAILED;
    uuidset_init(&w.seen);
    w.out = out_create(columns, ARRAY_SIZE(columns), format_of(cli));
    print_new(&w, limit);
    if (cli->opts[CLI_OPT_FOLLOW])
        follow(&w);
    out_end(w.out, stdout);
    out_destroy(w.out);
    uuidset_destroy(&w.seen);
    db_close(&w.db);
    return CLI_OK;
}

/* --- from the engine -------------------------------------------------------- */

static const char *type_name(unsigned type)
{
    static const char *const names[] = {
        [MOAT_EV_PORT] = "port",
        [MOAT_EV_CONNECTED] = "connected",
        [MOAT_EV_DISCONNECTED] = "disconnected",
        [MOAT_EV_RINGS_STARTED] = "rings-started",
        [MOAT_EV_RINGS_STOPPED] = "rings-stopped",
        [MOAT_EV_PRECOPY] = "precopy",
        [MOAT_EV_FROZEN] = "frozen",
        [MOAT_EV_OPENED] = "opened",
        [MOAT_EV_HOLD_EXPIRED] = "hold-expired",
        [MOAT_EV_STATE] = "state",
        [MOAT_EV_PACKET] = "packet",
        [MOAT_EV_QUOTA] = "quota",
        [MOAT_EV_REFUSED] = "refused",
        [MOAT_EV_WAIT_EXPIRED] = "wait-expired",
        [MOAT_EV_REPLUGGED] = "replugged",
        [MOAT_EV_LEARNT] = "address-learnt",
        [MOAT_EV_ENROLLED] = "enrolled",
        [MOAT_EV_CUT] = "sessions-cut",
        [MOAT_EV_REPLACED] = "engine-replaced",
    };

    return type < ARRAY_SIZE(names) && names[type] ? names[type] : "?";
}

static char *packet_message(const struct moat_event *e)
{
    const struct moat_flow *f = &e->flow;
    unsigned family = f->family == MOAT_FAM_IP6 ? 6 : 4;
    bool has_ports = f->proto == 6 || f->proto == 17 || f->proto == 132;
    /* For ICMP the ports are type and code. */
    char *proto = f->family == MOAT_FAM_ARP ? xstrdup("arp") : text_proto(f->proto);
    bool out = f->dir == MOAT_FROM_VM;
    char *local = text_address(family, f->local, has_ports ? (out ? f->sport : f->dport) : -1);
    char *remote = text_address(family, f->remote, has_ports ? (out ? f->dport : f->sport) : -1);
    char *why = e->value == MOAT_ALLOW
                    ? xasprintf("rule %u", e->rule)
                    : xasprintf("%s, rule %u", moat_reason_name(e->reason), e->rule);
    char *s = xasprintf("%s %s %s %s %s (%s, generation %" PRIu64 ")", packet_verdict(e->value),
                        proto, local, out ? "->" : "<-", remote, why, e->generation);

    free(proto);
    free(local);
    free(remote);
    free(why);
    return s;
}

static char *event_message(const struct moat_event *e)
{
    char *text = text_field(e->text, sizeof e->text), *path = text_field(e->path, sizeof e->path),
         *s;

    switch (e->type) {
    case MOAT_EV_PACKET:
        s = packet_message(e);
        break;
    case MOAT_EV_PRECOPY:
        s = xstrdup(e->value ? "migration begins" : "migration is over");
        break;
    case MOAT_EV_STATE:
        s = xstrdup(
            moat_slot_state_name(e->value < 0 || e->value > 255 ? 255 : (unsigned)e->value));
        break;
    case MOAT_EV_OPENED:
    case MOAT_EV_REPLACED: {
        char *held = text_microseconds(e->value);

        s = xasprintf(e->type == MOAT_EV_OPENED ? "packets were held for %s"
                                                : "packets had to wait for %s",
                      held);
        free(held);
        break;
    }
    case MOAT_EV_HOLD_EXPIRED:
    case MOAT_EV_WAIT_EXPIRED:
        s = xasprintf("after %" PRId64 "ms", e->value);
        break;
    case MOAT_EV_QUOTA:
        s = xstrdup(e->reason ? moat_reason_text(e->reason) : "");
        break;
    case MOAT_EV_LEARNT: {
        char *addr = text_address(e->flow.family, e->flow.local, -1);

        s = xasprintf("the VM's own from now on: %s", addr);
        free(addr);
        break;
    }
    case MOAT_EV_ENROLLED:
        s = xasprintf("policy is enforced; it would have refused %" PRId64 " packets", e->value);
        break;
    case MOAT_EV_CUT:
        s = xasprintf("quarantine has ended %" PRId64 " idle sessions", e->value);
        break;
    default:
        s = xstrdup(path);
        break;
    }
    if (*text) {
        char *both = xasprintf("%s%s%s", s, *s ? ": " : "", text);

        free(s);
        s = both;
    }
    free(text);
    free(path);
    return s;
}

static void put_field(struct out *o, const char *key, const char *field, size_t size)
{
    char *s = text_field(field, size);

    out_string(o, key, s);
    free(s);
}

static void put_local(struct out *o, const struct moat_event *e)
{
    char *message = event_message(e);

    out_row(o);
    out_time_us(o, "time", (int64_t)MIN(e->time_us, (uint64_t)INT64_MAX));
    out_string(o, "type", type_name(e->type));
    put_field(o, "vnic", e->vnic, sizeof e->vnic);
    out_string(o, "message", message);
    out_integer(o, "seq", (int64_t)e->seq);
    put_field(o, "path", e->path, sizeof e->path);
    out_string(o, "reason", moat_reason_name(e->reason));
    out_integer(o, "rule", e->rule);
    out_integer(o, "value", e->value);
    out_integer(o, "generation", (int64_t)e->generation);
    out_integer(o, "frame_len", e->frame_len);
    if (e->type == MOAT_EV_PACKET)
        out_value(o, "flow", packet_flow_json(&e->flow), NULL);
    put_field(o, "text", e->text, sizeof e->text);
    free(message);
}

/* The engine's own event may have come before we listened; what HELLO says is never lost. */
static void put_replaced(struct out *o, const struct moat_ctl_hello *h)
{
    struct moat_event e = {
        .type = MOAT_EV_REPLACED, .time_us = (uint64_t)time_wall_usec(), .value = h->gate_us};

    ovs_strlcpy(e.text, h->engine, sizeof e.text);
    put_local(o, &e);
    out_flush(o, stdout);
    fflush(stdout);
}

/* The connection has ended.  If that is because another engine took over, says so and goes on with
 * it. */
static bool follow_engine(const struct cli *cli, struct moat_ctl **c, struct out *o, uint64_t *last,
                          int64_t *left)
{
    const struct moat_ctl_hello *was = moat_ctl_hello(*c), *is;
    struct moat_ctl *fresh;
    char why[512];

    if (engine_try_open(cli, &fresh, why, sizeof why))
        return false;
    is = moat_ctl_hello(fresh);
    if (is->pid != was->pid || is->replacements <= was->replacements || moat_ctl_subscribe(fresh)) {
        moat_ctl_close(fresh);
        return false;
    }
    moat_ctl_close(*c);
    *c = fresh;
    *last = 0; /* it counts anew */
    if (!cli->opts[CLI_OPT_VNIC]) {
        put_replaced(o, is);
        --*left;
    }
    return true;
}

/* Prints what is there; counts down *left.  False: the connection is gone.  is_told: that the
 * engine at its other end took over. */
static bool drain(const struct cli *cli, struct moat_ctl *c, struct out *o, uint64_t *last,
                  int64_t *left, bool is_told)
{
    const char *vnic = cli->opts[CLI_OPT_VNIC];
    struct moat_event e;
    int rc = 0;

    while (*left > 0 && (rc = moat_ctl_next_event(c, &e)) > 0) {
        if (*last && e.seq > *last + 1)
            cli_error("%" PRIu64 " events were lost", e.seq - *last - 1);
        *last = e.seq;
        if ((vnic && strncmp(vnic, e.vnic, sizeof e.vnic)) ||
            (e.type == MOAT_EV_REPLACED && is_told))
            continue;
        put_local(o, &e);
        --*left;
    }
    if (out_n_rows(o)) {
        out_flush(o, stdout);
        fflush(stdout);
    }
    return rc >= 0;
}

static int list_from_engine(const struct cli *cli)
{
    bool on = cli->opts[CLI_OPT_FOLLOW], is_told = false, ok;
    int64_t limit = INT64_MAX;
    uint64_t last = 0;
    struct moat_ctl *c;

    if (cli->opts[CLI_OPT_VM] || cli->opts[CLI_OPT_SEVERITY])
        return cli_usage(cli, "--local knows neither --vm nor --severity");
    if (!cli_number(cli, CLI_OPT_LIMIT, 0, INT64_MAX, &limit))
        return CLI_USAGE;
    if (!engine_open(cli, &c))
        return CLI_FAILED;
    if (moat_ctl_subscribe(c)) {
        engine_say(cli, c);
        moat_ctl_close(c);
        return CLI_FAILED;
    }

    struct out *o = out_create(local_columns, ARRAY_SIZE(local_columns), format_of(cli));
    struct pollfd p = {.events = POLLIN};
    out_flush(o, stdout);
    fflush(stdout);
    /* Without -f: what comes until nothing came for a second, or the time is up. */
    long long end = time_msec() + cli->timeout_s * 1000LL;
    do {
        p.fd = moat_ctl_fd(c);
        if (poll(&p, 1, on ? -1 : 1000) == 0)
            break;
        ok = drain(cli, c, o, &last, &limit, is_told);
        if (!ok) {
            ok = is_told = follow_engine(cli, &c, o, &last, &limit);
            if (!ok)
                engine_say(cli, c);
        }
    } while (ok && limit > 0 && !ferror(stdout) && (on || time_msec() < end));
    out_end(o, stdout);
    out_destroy(o);
    ok = !moat_ctl_is_dead(c);
    moat_ctl_close(c);
    return ok ? CLI_OK : CLI_FAILED;
}

static int list_events(const struct cli *cli)
{
    return cli->opts[CLI_OPT_LOCAL] ? list_from_engine(cli) : list_from_db(cli);
}

const struct cli_command event_commands[] = {
    {"event list", "", "list events of all hosts, or of this host's engine",
     "The last 100 events of the database, or as --limit says, the newest last. With -f\n"
     "the last 10 and then each as it comes; --format json then prints an object per line.\n"
     "With --local, what this host's engine reports from now on, until it is quiet for a\n"
     "second, or with -f until --limit events are printed.",
     CLI_O(FOLLOW) | CLI_O(LIMIT) | CLI_O(VM) | CLI_O(VNIC) | CLI_O(SEVERITY) | CLI_O(LOCAL), 0, 0,
     true, list_events},
    {.name = NULL},
};
