/* SPDX-License-Identifier: Apache-2.0 */
/* moatctl slot: what this host's engine enforces, vNIC by vNIC. */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "engine.h"
#include "openvswitch/dynamic-string.h"
#include "out.h"
#include "text.h"
#include "util.h"

static const struct out_column columns[] = {
    {"vnic", "VNIC", 0},
    {"vm", "VM", 0},
    {"network", "NETWORK", 0},
    {"state", "STATE", 0},
    {"enroll_left_s", NULL, 0},
    {"connected", "CONNECTED", 0},
    {"running", "RUNNING", 0},
    {"epoch", "EPOCH", OUT_RIGHT},
    {"generation", "GENERATION", OUT_RIGHT},
    {"digest", "DIGEST", 0},
    {"rules", "RULES", OUT_RIGHT},
    {"sessions", "SESSIONS", OUT_RIGHT},
    {"half_open", "HALF-OPEN", OUT_RIGHT},
    {"quarantine", "QUARANTINE", 0},
    {"path", "PATH", OUT_FLEX},
};

static const struct out_column show_columns[] = {
    {"vnic", "vNIC", 0},
    {"vm", "VM", 0},
    {"network", "Network", 0},
    {"mac", "MAC", 0},
    {"addresses", "Addresses", 0},
    {"learnt", "Learnt addresses", 0},
    {"path", "Port", 0},
    {"has_port", "Port is there", 0},
    {"state", "State", 0},
    {"state_text", NULL, 0},
    {"enroll_left_s", "Enrolment left", 0},
    {"connected", "QEMU connected", 0},
    {"running", "Rings running", 0},
    {"precopy", "Migration under way", 0},
    {"ready", "Opens with its rings", 0},
    {"epoch", "Epoch", 0},
    {"ruleset", "Ruleset", 0},
    {"generation", "Generation", 0},
    {"digest", "Digest", 0},
    {"serial", "Rulesets so far", 0},
    {"rules", "Rules", 0},
    {"sessions", "Sessions", 0},
    {"half_open", "Half-open", 0},
    {"settings", "Settings", 0},
    {"counters", NULL, 0},
    {"drops", NULL, 0},
};

static const struct out_column counter_columns[] = {
    {"counter", "COUNTER", 0},
    {"value", "VALUE", OUT_RIGHT},
    {"text", "MEANING", OUT_FLEX},
};

static const struct out_column drop_columns[] = {
    {"direction", "DIRECTION", 0},
    {"reason", "REASON", 0},
    {"packets", "PACKETS", OUT_RIGHT},
    {"text", "MEANING", OUT_FLEX},
};

static const char *const counter_texts[] = {
#define X(SYM, NAME, TEXT) TEXT,
    MOAT_COUNTERS(X)
#undef X
};

static const char *state_text(unsigned state)
{
    static const char *const texts[] = {
        [MOAT_SLOT_FREE] = "not in use",
        [MOAT_SLOT_BLOCKED] = "nothing passes",
        [MOAT_SLOT_ENROLLING] = "running sessions are picked up, refusals are only logged",
        [MOAT_SLOT_ACTIVE] = "filters",
        [MOAT_SLOT_ARRIVING] =
            "waits for its state: packets from the VM are held, those to it refused",
        [MOAT_SLOT_FROZEN] = "has left, its state is being handed over",
        [MOAT_SLOT_DEPARTED] = "has left, counts what still comes",
    };

    return state < ARRAY_SIZE(texts) ? texts[state] : "unknown to this moatctl";
}

/* --- list ------------------------------------------------------------------- */

static void put_state(struct out *o, const struct moat_slot_info *s)
{
    const char *name = moat_slot_state_name(s->state);

    if (s->state != MOAT_SLOT_ENROLLING) {
        out_string(o, "state", name);
        out_value(o, "enroll_left_s", json_null_create(), NULL);
        return;
    }
    out_value(o, "state", json_string_create(name), xasprintf("%s %us", name, s->enroll_left_s));
    out_integer(o, "enroll_left_s", s->enroll_left_s);
}

static void put_slot(struct out *o, const struct moat_slot_info *s)
{
    out_row(o);
    out_string(o, "vnic", s->conf.vnic);
    out_string(o, "vm", s->conf.vm);
    out_string(o, "network", s->conf.network);
    put_state(o, s);
    out_bool(o, "connected", s->connected);
    out_bool(o, "running", s->running);
    out_integer(o, "epoch", (int64_t)s->conf.epoch);
    if (s->has_ruleset) {
        char *digest = text_hex(s->digest, sizeof s->digest);

        out_integer(o, "generation", (int64_t)s->generation);
        out_value(o, "digest", json_string_create(digest), xasprintf("%.12s", digest));
        free(digest);
        out_integer(o, "rules", s->n_rules);
    } else {
        out_value(o, "generation", json_null_create(), xstrdup("none"));
        out_value(o, "digest", json_null_create(), NULL);
        out_value(o, "rules", json_null_create(), NULL);
    }
    out_integer(o, "sessions", s->sessions);
    out_integer(o, "half_open", s->half_open);
    out_bool(o, "quarantine", s->conf.settings.quarantine);
    out_string(o, "path", s->conf.path);
}

/* A port that belongs to no slot: the host's setting for such ports holds. */
static void put_port(struct out *o, const struct moat_port_info *p)
{
    out_row(o);
    out_value(o, "vnic", json_null_create(), xstrdup("-"));
    out_value(o, "vm", json_null_create(), xstrdup("-"));
    out_string(o, "state", p->replugged ? "replugged" : "unclaimed");
    out_bool(o, "connected", p->connected);
    out_bool(o, "running", p->running);
    out_string(o, "path", p->path);
}

static int list_slots(const struct cli *cli)
{
    const char *vm = cli->opts[CLI_OPT_VM], *vnic = cli->opts[CLI_OPT_VNIC];
    struct moat_slot_info *slots = NULL;
    struct moat_port_info *ports = NULL;
    size_t n_slots, n_ports = 0;
    struct moat_ctl *c;
    int status = CLI_FAILED;

    if (!engine_open(cli, &c))
        return CLI_FAILED;
    if (!engine_slots(cli, c, vnic, vm, &slots, &n_slots))
        goto out;
    if (!vm && !vnic && moat_ctl_ports(c, &ports, &n_ports)) {
        status = engine_say(cli, c);
        goto out;
    }
    struct out *o = out_create(columns, ARRAY_SIZE(columns), cli->json ? OUT_JSON : OUT_TABLE);
    for (size_t i = 0; i < n_slots; i++)
        put_slot(o, &slots[i]);
    for (size_t i = 0; i < n_ports; i++)
        if (!ports[i].claimed)
            put_port(o, &ports[i]);
    out_end(o, stdout);
    out_destroy(o);
    status = CLI_OK;
out:
    free(slots);
    free(ports);
    moat_ctl_close(c);
    return status;
}

/* --- show ------------------------------------------------------------------- */

static void put_addresses(struct out *o, const char *key, const struct moat_addr *addrs, size_t n,
                          size_t max)
{
    char *texts[MOAT_ADDRS_MAX] = {NULL};

    n = MIN(n, max);
    for (size_t i = 0; i < n; i++) {
        const struct moat_addr *a = &addrs[i];
        char *addr = text_address(a->family, a->addr, -1);

        texts[i] = a->plen == (a->family == MOAT_FAM_IP6 ? 128 : 32)
                       ? xstrdup(addr)
                       : xasprintf("%s/%u", addr, a->plen);
        free(addr);
    }
    out_strings(o, key, texts, n);
    for (size_t i = 0; i < n; i++)
        free(texts[i]);
}

/* The one list: JSON has all of it, the table what is not by default.  Names as in the policy
 * language; in JSON as they always were, with units. */
struct shown {
    struct json *json;
    struct ds text;
};

static void put_word(struct shown *w, const char *key, const char *name, const char *value,
                     const char *normal)
{
    json_object_put_string(w->json, key, value);
    if (!normal || strcmp(value, normal))
        ds_put_format(&w->text, "%s%s %s", w->text.length ? ", " : "", name, value);
}

static void put_switch(struct shown *w, const char *key, const char *name, bool on, bool normal)
{
    json_object_put(w->json, key, json_boolean_create(on));
    if (on != normal)
        ds_put_format(&w->text, "%s%s %s", w->text.length ? ", " : "", name, on ? "on" : "off");
}

static void put_number(struct shown *w, const char *key, const char *name, uint32_t value,
                       const char *unit, uint32_t normal)
{
    json_object_put(w->json, key, json_integer_create(value));
    if (value != normal)
        ds_put_format(&w->text, "%s%s %u%s", w->text.length ? ", " : "", name, value, unit);
}

static void put_ethertypes(struct shown *w, const struct moat_settings *s)
{
    struct json *array = json_array_create_empty();

    for (unsigned i = 0; i < MIN(s->n_ethertypes, MOAT_ETHERTYPES_MAX); i++) {
        char *type = xasprintf("0x%04x", s->ethertypes[i]);

        ds_put_format(&w->text, "%s%s",
                      i                ? " "
                      : w->text.length ? ", ethertypes "
                                       : "ethertypes ",
                      type);
        json_array_add(array, json_string_create_nocopy(type));
    }
    json_object_put(w->json, "ethertypes", array);
}

/* In JSON each has a value: its own or the default's. */
static void put_timers(struct shown *w, const struct moat_settings *s)
{
    struct json *timers = json_object_create();

    for (unsigned t = 0; t < MOAT_N_TIMERS; t++) {
        uint32_t seconds = s->timers[t] ? s->timers[t] : moat_timer_default(t);

        json_object_put(timers, moat_timer_name(t), json_integer_create(seconds));
        if (seconds != moat_timer_default(t))
            ds_put_format(&w->text, "%stimer %s %us", w->text.length ? ", " : "",
                          moat_timer_name(t), seconds);
    }
    json_object_put(w->json, "timers", timers);
}

static void put_settings(struct out *o, const struct moat_settings *s)
{
    struct shown w = {json_object_create(), DS_EMPTY_INITIALIZER};
    struct moat_settings normal;

    moat_settings_init(&normal);
    if (s->quarantine)
        ds_put_cstr(&w.text, "quarantine");
    json_object_put(w.json, "quarantine", json_boolean_create(s->quarantine));
    /* What a danger gets is always shown. */
    put_word(&w, "on_missing_policy", "on-missing-policy", moat_fail_name(s->on_missing_policy),
             NULL);
    put_word(&w, "on_missing_state", "on-missing-state", moat_fail_name(s->on_missing_state), NULL);
    put_number(&w, "pickup_s", "pickup", s->pickup_s, "s", normal.pickup_s);
    put_word(&w, "on_unprotected_host", "on-unprotected-host",
             moat_fail_name(s->on_unprotected_host), NULL);
    put_word(&w, "spoof", "anti-spoofing", moat_spoof_name(s->spoof), NULL);
    json_object_put(w.json, "tcp_loose", json_boolean_create(s->tcp_loose));
    if (s->tcp_loose)
        ds_put_cstr(&w.text, ", tcp loose");
    put_switch(&w, "transfer_sessions", "transfer-sessions", s->transfer_sessions,
               normal.transfer_sessions);
    put_word(&w, "vlan", "vlan", moat_vlan_name(s->vlan), moat_vlan_name(normal.vlan));
    put_switch(&w, "ra_guard", "ra-guard", s->ra_guard, normal.ra_guard);
    put_switch(&w, "dhcp_guard", "dhcp-guard", s->dhcp_guard, normal.dhcp_guard);
    put_ethertypes(&w, s);
    put_number(&w, "hold_ms", "hold", s->hold_ms, "ms", normal.hold_ms);
    put_number(&w, "enroll_s", "enroll", s->enroll_s, "s", normal.enroll_s);
    put_number(&w, "max_sessions", "max-sessions", s->max_sessions, "", 0);
    put_number(&w, "max_half_open", "max-half-open", s->max_half_open, "", 0);
    put_number(&w, "max_new_sessions", "max-new-sessions", s->max_new, "", 0);
    put_number(&w, "max_fragments", "max-fragments", s->max_fragments, "", 0);
    put_number(&w, "max_logs", "max-logs", s->max_logs, "", 0);
    put_timers(&w, s);
    out_value(o, "settings", w.json, ds_steal_cstr(&w.text));
    ds_destroy(&w.text);
}

static struct out *counters_of(const uint64_t *counters, enum out_format format)
{
    struct out *o = out_create(counter_columns, ARRAY_SIZE(counter_columns), format);

    for (unsigned i = 0; i < MOAT_N_NAMED_COUNTERS; i++)
        if (counters[i]) {
            out_row(o);
            out_string(o, "counter", moat_counter_name(i));
            out_count(o, "value", counters[i]);
            out_string(o, "text", counter_texts[i]);
        }
    return o;
}

static struct out *drops_of(const uint64_t *counters, enum out_format format)
{
    struct out *o = out_create(drop_columns, ARRAY_SIZE(drop_columns), format);

    for (unsigned dir = 0; dir < 2; dir++)
        for (unsigned r = 0; r < MOAT_N_REASONS; r++)
            if (counters[MOAT_C_DROP(dir, r)]) {
                out_row(o);
                out_string(o, "direction", dir == MOAT_FROM_VM ? "from-vm" : "to-vm");
                out_string(o, "reason", moat_reason_name(r));
                out_count(o, "packets", counters[MOAT_C_DROP(dir, r)]);
                out_string(o, "text", moat_reason_text(r));
            }
    return o;
}

static struct json *counters_json(const uint64_t *counters)
{
    struct json *object = json_object_create();

    for (unsigned i = 0; i < MOAT_N_NAMED_COUNTERS; i++)
        json_object_put(object, moat_counter_name(i),
                        json_integer_create((long long)MIN(counters[i], (uint64_t)INT64_MAX)));
    return object;
}

static void put_details(struct out *o, const struct moat_slot_info *s)
{
    char *digest = text_hex(s->digest, sizeof s->digest);

    out_row(o);
    out_string(o, "vnic", s->conf.vnic);
    out_string(o, "vm", s->conf.vm);
    out_string(o, "network", s->conf.network);
    const uint8_t *m = s->conf.mac;
    out_value(o, "mac",
              json_string_create_nocopy(
                  xasprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])),
              NULL);
    put_addresses(o, "addresses", s->conf.addrs, s->conf.n_addrs, MOAT_ADDRS_MAX);
    if (!s->conf.n_addrs)
        out_value(o, "addresses", json_array_create_empty(), xstrdup("any"));
    if (s->conf.settings.spoof == MOAT_SPOOF_LEARN)
        put_addresses(o, "learnt", s->learnt, s->n_learnt, ARRAY_SIZE(s->learnt));
    out_string(o, "path", s->conf.path);
    out_bool(o, "has_port", s->has_port);
    out_value(o, "state", json_string_create(moat_slot_state_name(s->state)),
              xasprintf("%s (%s)", moat_slot_state_name(s->state), state_text(s->state)));
    out_string(o, "state_text", state_text(s->state));
    if (s->state == MOAT_SLOT_ENROLLING)
        out_value(o, "enroll_left_s", json_integer_create(s->enroll_left_s),
                  s->enroll_left_s ? xasprintf("%u s", s->enroll_left_s)
                                   : xstrdup("begins when the rings start"));
    out_bool(o, "connected", s->connected);
    out_bool(o, "running", s->running);
    out_bool(o, "precopy", s->precopy);
    if (s->state == MOAT_SLOT_ARRIVING)
        out_bool(o, "ready", s->ready);
    out_integer(o, "epoch", (int64_t)s->conf.epoch);
    out_value(o, "ruleset", json_boolean_create(s->has_ruleset),
              xstrdup(s->has_ruleset ? "yes" : "none: on-missing-policy decides"));
    if (s->has_ruleset) {
        out_integer(o, "generation", (int64_t)s->generation);
        out_string(o, "digest", digest);
        out_integer(o, "serial", s->serial);
        out_integer(o, "rules", s->n_rules);
    }
    out_integer(o, "sessions", s->sessions);
    out_integer(o, "half_open", s->half_open);
    put_settings(o, &s->conf.settings);
    free(digest);
}

static bool show_slot(const struct cli *cli, struct moat_ctl *c, const struct moat_slot_info *s,
                      bool is_first, struct json *array)
{
    uint64_t counters[MOAT_N_COUNTERS];
    bool explain = cli->opts[CLI_OPT_EXPLAIN];

    if (moat_ctl_counters(c, s->conf.vnic, counters)) {
        engine_say(cli, c);
        return false;
    }
    struct out *o = out_create(show_columns, ARRAY_SIZE(show_columns), OUT_TABLE);
    struct out *named = counters_of(counters, OUT_TABLE), *drops = drops_of(counters, OUT_TABLE);
    put_details(o, s);
    if (cli->json) {
        out_value(o, "counters", counters_json(counters), NULL);
        out_value(o, "drops", out_json(drops), NULL);
        json_array_add(array, out_json_first(o));
    } else {
        if (!is_first)
            printf("\n");
        out_print_record(o, stdout);
        out_hide(named, "text", !explain);
        out_hide(drops, "text", !explain);
        if (out_n_rows(named)) {
            printf("\n");
            out_end(named, stdout);
        }
        if (out_n_rows(drops)) {
            printf("\n");
            out_end(drops, stdout);
        }
    }
    out_destroy(named);
    out_destroy(drops);
    out_destroy(o);
    return true;
}

static int show_slots(const struct cli *cli)
{
    const char *name = cli->args[0];
    struct moat_slot_info *slots;
    size_t n, kept = 0;
    struct moat_ctl *c;
    bool ok = false;

    if (!engine_open(cli, &c))
        return CLI_FAILED;
    if (engine_slots(cli, c, NULL, NULL, &slots, &n)) {
        struct json *array = json_array_create_empty();

        ok = true;
        for (size_t i = 0; i < n && ok; i++)
            if (!strcmp(slots[i].conf.vnic, name) || !strcmp(slots[i].conf.vm, name))
                ok = show_slot(cli, c, &slots[i], !kept++, array);
        if (ok && !kept) {
            cli_error("this host has no slot of a vNIC or VM \"%s\"", name);
            cli_hint("See: moatctl slot list");
            ok = false;
        }
        if (ok && cli->json)
            json_print(array, stdout);
        else
            json_destroy(array);
        free(slots);
    }
    moat_ctl_close(c);
    return ok ? CLI_OK : CLI_FAILED;
}

const struct cli_command slot_commands[] = {
    {"slot list", "", "list this host's slots and the ports without one",
     "A slot is what the engine keeps for a vNIC. A port of the switch that has none gets\n"
     "what the host's setting for unclaimed ports says; it is listed as unclaimed.",
     CLI_O(VM) | CLI_O(VNIC), 0, 0, true, list_slots},
    {"slot show", "VNIC|VM", "show slots with their counters and drop reasons",
     "Only counters that are not zero are shown.", CLI_O(EXPLAIN), 1, 1, false, show_slots},
    {.name = NULL},
};
