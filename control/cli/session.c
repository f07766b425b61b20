/* SPDX-License-Identifier: Apache-2.0 */
/* moatctl session: the live flow table of this host.
 *
 * A host may hold millions of sessions: they are printed page by page as the
 * engine gives them and never held together. */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "args.h"
#include "cli.h"
#include "engine.h"
#include "out.h"
#include "packet.h"
#include "text.h"
#include "util.h"

static const struct out_column columns[] = {
    {"vnic", "VNIC", 0},
    {"vm", "VM", 0},
    {"proto", "PROTO", 0},
    {"local_text", "LOCAL", 0},
    {"remote_text", "REMOTE", 0},
    {"opened_by", "OPENED-BY", 0},
    {"state_text", "STATE", 0},
    {"age_s", "AGE", OUT_RIGHT},
    {"idle_s", "IDLE", OUT_RIGHT},
    {"packets_text", "PACKETS", OUT_RIGHT},
    {"bytes_text", "BYTES", OUT_RIGHT},
    {"generation", "GEN", OUT_RIGHT},
    {"flags", "FLAGS", 0},
    {"rule_label", "RULE", OUT_FLEX},
    {"network", NULL, 0},
    {"vlan", NULL, 0},
    {"local", NULL, 0},
    {"local_port", NULL, 0},
    {"remote", NULL, 0},
    {"remote_port", NULL, 0},
    {"local_state", NULL, 0},
    {"remote_state", NULL, 0},
    {"packets_from_vm", NULL, 0},
    {"packets_to_vm", NULL, 0},
    {"bytes_from_vm", NULL, 0},
    {"bytes_to_vm", NULL, 0},
    {"rule", NULL, 0},
    {"rule_text", NULL, 0},
};

/* --- filter ----------------------------------------------------------------- */

struct filter {
    int proto, port; /* -1: any */
    bool has_peer;
    struct arg_prefix peer;
    const char *state;
};

static bool read_proto(const struct cli *cli, struct filter *f)
{
    static const struct {
        const char *name;
        int number;
    } known[] = {{"tcp", 6},    {"udp", 17},    {"icmp", 1},
                 {"icmp6", 58}, {"icmpv6", 58}, {"sctp", 132}};
    const char *s = cli->opts[CLI_OPT_PROTO];
    int64_t number;

    for (size_t i = 0; i < ARRAY_SIZE(known); i++)
        if (!strcmp(s, known[i].name)) {
            f->proto = known[i].number;
            return true;
        }
    if (!cli_number(cli, CLI_OPT_PROTO, 0, 255, &number))
        return false;
    f->proto = (int)number;
    return true;
}

static bool read_filter(const struct cli *cli, struct filter *f)
{
    const char *peer = cli->opts[CLI_OPT_PEER];
    int64_t port = -1;

    *f = (struct filter){.proto = -1, .state = cli->opts[CLI_OPT_STATE]};
    if (cli->opts[CLI_OPT_PROTO] && !read_proto(cli, f))
        return false;
    if (!cli_number(cli, CLI_OPT_PORT, 0, 65535, &port))
        return false;
    f->port = (int)port;
    f->has_peer = peer;
    if (peer && !prefix_parse(peer, &f->peer)) {
        cli_usage(cli, "--peer: \"%s\" is no address or prefix", peer);
        return false;
    }
    if (f->state && !session_is_state(f->state)) {
        cli_usage(cli,
                  "--state: \"%s\" is none of none, syn-sent, established, closing, fin-acked, "
                  "reset, silent, single, multiple",
                  f->state);
        return false;
    }
    return true;
}

static bool matches(const struct filter *f, const struct moat_ses_rec *r)
{
    return (f->proto < 0 || f->proto == r->proto) &&
           (f->port < 0 || f->port == r->lport || f->port == r->rport) &&
           (!f->has_peer || prefix_contains(&f->peer, r->family, r->remote)) &&
           (!f->state || !strcmp(f->state, session_state(r->proto, r->side[0].state)) ||
            !strcmp(f->state, session_state(r->proto, r->side[1].state)));
}

/* --- a session -------------------------------------------------------------- */

static char *pair(char *a, char *b)
{
    char *s = xasprintf("%s/%s", a, b);

    free(a);
    free(b);
    return s;
}

static void put_ends(struct out *o, const struct moat_ses_rec *r)
{
    char *local = text_address(r->family, r->local, -1),
         *remote = text_address(r->family, r->remote, -1);
    bool has_ports = r->lport || r->rport;

    out_value(o, "local_text", NULL, text_address(r->family, r->local, has_ports ? r->lport : -1));
    out_value(o, "remote_text", NULL,
              text_address(r->family, r->remote, has_ports ? r->rport : -1));
    out_string(o, "local", local);
    out_string(o, "remote", remote);
    out_integer(o, "local_port", r->lport);
    out_integer(o, "remote_port", r->rport);
    free(local);
    free(remote);
}

static void put_states(struct out *o, const struct moat_ses_rec *r)
{
    unsigned local = r->side[MOAT_FROM_VM].state, remote = r->side[MOAT_TO_VM].state;

    out_string(o, "local_state", session_state(r->proto, local));
    out_string(o, "remote_state", session_state(r->proto, remote));
    out_value(o, "state_text", NULL, session_states(r->proto, local, remote));
}

static void put_traffic(struct out *o, const struct moat_ses_rec *r)
{
    out_count(o, "packets_from_vm", r->packets[MOAT_FROM_VM]);
    out_count(o, "packets_to_vm", r->packets[MOAT_TO_VM]);
    out_count(o, "bytes_from_vm", r->bytes[MOAT_FROM_VM]);
    out_count(o, "bytes_to_vm", r->bytes[MOAT_TO_VM]);
    out_value(o, "packets_text", NULL,
              pair(text_count(r->packets[MOAT_FROM_VM]), text_count(r->packets[MOAT_TO_VM])));
    out_value(o, "bytes_text", NULL,
              pair(text_count(r->bytes[MOAT_FROM_VM]), text_count(r->bytes[MOAT_TO_VM])));
}

static void put_flags(struct out *o, const struct moat_ses_rec *r)
{
    char *text;
    struct json *array = session_flags_json(r->flags, &text);

    out_value(o, "flags", array, text);
}

static void put_rule(struct out *o, const struct moat_ses_rec *r, struct rulebook *book)
{
    unsigned line;
    bool is_builtin;
    const char *text = r->flags & MOAT_SES_F_FAIL_OPEN
                           ? NULL
                           : rulebook_text(book, r->generation, r->rule, &line, &is_builtin);

    out_integer(o, "rule", r->rule);
    out_integer(o, "generation", (int64_t)r->generation);
    if (text) {
        out_string(o, "rule_text", text);
        out_value(o, "rule_label", NULL, xasprintf("%u: %s", r->rule, text));
    } else {
        out_value(o, "rule_text", json_null_create(), NULL);
        out_value(o, "rule_label", NULL,
                  r->flags & MOAT_SES_F_FAIL_OPEN ? xstrdup("(fail mode)")
                                                  : xasprintf("%u", r->rule));
    }
}

static void put_session(struct out *o, const char *vnic, const struct moat_slot_info *slot,
                        const struct moat_ses_rec *r, struct rulebook *book)
{
    char *proto = text_proto(r->proto);

    out_row(o);
    out_string(o, "vnic", vnic);
    out_string(o, "vm", slot ? slot->conf.vm : "");
    out_string(o, "network", slot ? slot->conf.network : "");
    out_string(o, "proto", proto);
    out_integer(o, "vlan", r->vlan);
    put_ends(o, r);
    out_string(o, "opened_by", r->dir == MOAT_FROM_VM ? "vm" : "remote");
    put_states(o, r);
    out_seconds(o, "age_s", r->age_s);
    out_seconds(o, "idle_s", r->idle_s);
    put_traffic(o, r);
    put_flags(o, r);
    put_rule(o, r, book);
    free(proto);
}

/* --- list ------------------------------------------------------------------- */

struct listing {
    const struct cli *cli;
    struct moat_ctl *c;
    struct filter filter;
    struct rulebook book;
    struct moat_slot_info *slots;
    size_t n_slots;
    struct out *out;
    bool count_only;
    int64_t limit, n;
};

static const struct moat_slot_info *slot_of(const struct listing *l, const char *vnic)
{
    for (size_t i = 0; i < l->n_slots; i++)
        if (!strcmp(l->slots[i].conf.vnic, vnic))
            return &l->slots[i];
    return NULL;
}

/* False: failed, and said so. */
static bool list_page(struct listing *l, struct moat_ctl_page *page)
{
    const struct moat_slot_info *slot = slot_of(l, page->vnic);
    struct moat_ses_rec rec;

    while (page->left && l->n < l->limit) {
        if (!moat_ctl_frame_next(&page->frames, &page->left, &rec)) {
            cli_error("the engine at %s sent a malformed session record", l->cli->ctl_path);
            return false;
        }
        if (!matches(&l->filter, &rec))
            continue;
        l->n++;
        if (!l->count_only)
            put_session(l->out, page->vnic, slot, &rec, &l->book);
    }
    /* Widths come from the first rows: no head without them. */
    if (!l->count_only && out_n_rows(l->out))
        out_flush(l->out, stdout);
    return true;
}

static bool list_of(struct listing *l, const char *vnic)
{
    struct moat_ctl_page page;
    int rc = 0;

    moat_ctl_page_init(&page, vnic, 0);
    while (l->n < l->limit && !ferror(stdout) && (rc = moat_ctl_sessions(l->c, &page)) > 0)
        if (!list_page(l, &page))
            return false;
    if (rc < 0) {
        engine_say(l->cli, l->c);
        return false;
    }
    return true;
}

static bool list_all(struct listing *l)
{
    const char *vm = l->cli->opts[CLI_OPT_VM], *vnic = l->cli->opts[CLI_OPT_VNIC];
    bool ok = true;

    if (!engine_slots(l->cli, l->c, vnic, vm, &l->slots, &l->n_slots))
        return false;
    if (!vm && !vnic)
        return list_of(l, "");
    for (size_t i = 0; i < l->n_slots && ok; i++)
        ok = list_of(l, l->slots[i].conf.vnic);
    return ok;
}

static int list_sessions(const struct cli *cli)
{
    struct listing l = {.cli = cli, .limit = INT64_MAX, .count_only = cli->opts[CLI_OPT_COUNT]};
    bool ok;

    if (!read_filter(cli, &l.filter) || !cli_number(cli, CLI_OPT_LIMIT, 1, INT64_MAX, &l.limit))
        return CLI_USAGE;
    if (!engine_open(cli, &l.c))
        return CLI_FAILED;
    if (!l.count_only)
        rulebook_open(&l.book, cli);
    l.out = out_create(columns, ARRAY_SIZE(columns), cli->json ? OUT_JSON : OUT_TABLE);
    ok = list_all(&l);
    if (!l.count_only && (ok || l.n)) {
        out_end(l.out, stdout);
    } else if (ok && cli->json) {
        struct json *count = json_object_create();

        json_object_put(count, "count", json_integer_create(l.n));
        json_print(count, stdout);
    } else if (ok) {
        printf("%" PRId64 "\n", l.n);
    }
    out_destroy(l.out);
    rulebook_close(&l.book);
    free(l.slots);
    moat_ctl_close(l.c);
    return ok ? CLI_OK : CLI_FAILED;
}

/* --- flush ------------------------------------------------------------------ */

static int flush_sessions(const struct cli *cli)
{
    const char *vnic = cli->opts[CLI_OPT_VNIC];
    struct moat_slot_info *slots;
    struct moat_ctl *c;
    int status = CLI_FAILED;
    size_t n;

    if (!vnic)
        return cli_usage(cli, "--vnic is missing");
    if (!engine_open(cli, &c))
        return CLI_FAILED;
    if (engine_slots(cli, c, vnic, NULL, &slots, &n)) {
        status = moat_ctl_flush(c, vnic) ? engine_say(cli, c) : CLI_OK;
        free(slots);
    }
    moat_ctl_close(c);
    return status;
}

const struct cli_command session_commands[] = {
    {"session list", "", "list live sessions of this host",
     "Both sides are told from the VM: LOCAL is the VM, REMOTE the other end, STATE is\n"
     "local/remote if they differ, PACKETS and BYTES are from/to the VM. RULE is the rule\n"
     "that admitted the session; its text is shown if the database has that generation of\n"
     "the policy.\n\n"
     "TCP states: none, syn-sent, established, closing, fin-acked, reset.\n"
     "Others: silent, single (one packet), multiple.",
     CLI_O(VM) | CLI_O(VNIC) | CLI_O(PROTO) | CLI_O(PEER) | CLI_O(PORT) | CLI_O(STATE) |
         CLI_O(COUNT) | CLI_O(LIMIT),
     0, 0, true, list_sessions},
    {"session flush", "", "forget all sessions of a vNIC",
     "Connections that go on must be opened anew: strict TCP refuses their next packets.",
     CLI_O(VNIC), 0, 0, false, flush_sessions},
    {.name = NULL},
};
