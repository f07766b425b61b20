/* SPDX-License-Identifier: Apache-2.0 */

#include <config.h>

#include "status.h"

#include <string.h>

#include "cluster.h"
#include "engine.h"
#include "intent.h"
#include "openvswitch/dynamic-string.h"
#include "openvswitch/json.h"
#include "openvswitch/shash.h"
#include "ovsdb.h"
#include "peer.h"
#include "reconcile.h"
#include "timeval.h"
#include "unixctl.h"
#include "util.h"
#include "vnic.h"

static const char *self;

static void put_str(struct json *o, const char *key, const char *value)
{
    json_object_put_string(o, key, value);
}

static void put_int(struct json *o, const char *key, long long value)
{
    json_object_put(o, key, json_integer_create(value));
}

static struct json *vnic_json(const struct vnic *v)
{
    const struct moat_slot_info *s = engine_slot(v->id);
    struct json *o = json_object_create();

    put_str(o, "vnic", v->id);
    put_str(o, "vm", s ? s->conf.vm : "");
    put_str(o, "state", mig_state_name(v->mig.state));
    put_str(o, "slot", s ? moat_slot_state_name(s->state) : "none");
    put_str(o, "other-host", v->mig.peer);
    put_int(o, "epoch", (long long)v->mig.epoch);
    put_int(o, "generation", s ? (long long)s->generation : 0);
    put_int(o, "sessions", s ? s->sessions : 0);
    put_str(o, "decided-by", v->decided);
    put_str(o, "problem", v->problem);
    json_object_put(o, "connected", json_boolean_create(s && s->connected));
    json_object_put(o, "running", json_boolean_create(s && s->running));
    return o;
}

static struct json *status_json(void)
{
    struct json *o = json_object_create(), *list = json_array_create_empty();
    struct json *trouble = json_object_create();
    const struct shash_node **sorted = shash_sort(vnics_all());
    const struct smap_node *node;

    put_str(o, "host", self);
    put_str(o, "database", cluster_up() ? "connected" : cluster_known() ? "away" : "never seen");
    put_str(o, "local-database", ovsdb_ready() ? "connected" : "away");
    put_str(o, "fast-path", engine_up() ? "connected" : engine_error());
    put_int(o, "policy-generation", (long long)intent_generation());
    put_str(o, "policy-problem", intent_problem() ? intent_problem() : "");
    put_str(o, "listening", peer_listening() ? peer_listening() : "");
    put_int(o, "connections", peer_count());
    put_int(o, "connections-refused", (long long)peer_n_refused());
    put_int(o, "requests-refused", (long long)vnics_n_refused());
    put_int(o, "events-dropped", (long long)cluster_events_dropped());
    for (size_t i = 0; i < shash_count(vnics_all()); i++)
        json_array_add(list, vnic_json(sorted[i]->data));
    free(sorted);
    SMAP_FOR_EACH (node, cluster_problems()) {
        put_str(trouble, node->key, node->value);
    }
    json_object_put(o, "problems", trouble);
    json_object_put(o, "vnics", list);
    return o;
}

/* Objects as "key: value" lines, lists of objects indented below them. */
static void text_of(const struct json *j, int indent, struct ds *out)
{
    const struct shash_node **sorted = shash_sort(json_object(j));

    for (size_t i = 0; i < shash_count(json_object(j)); i++) {
        const struct json *value = sorted[i]->data;
        ds_put_char_multiple(out, ' ', indent);
        if (value->type == JSON_OBJECT) {
            ds_put_format(out, "%s:\n", sorted[i]->name);
            text_of(value, indent + 2, out);
        } else if (value->type == JSON_ARRAY) {
            ds_put_format(out, "%s: %zu\n", sorted[i]->name, value->array.n);
            for (size_t k = 0; k < value->array.n; k++) {
                ds_put_char_multiple(out, ' ', indent);
                ds_put_cstr(out, "-\n");
                text_of(value->array.elems[k], indent + 2, out);
            }
        } else {
            char *text = value->type == JSON_STRING ? xstrdup(json_string(value))
                                                    : json_to_string(value, 0);
            ds_put_format(out, "%s: %s\n", sorted[i]->name, text);
            free(text);
        }
    }
    free(sorted);
}

static void reply(struct unixctl_conn *conn, int argc, const char *argv[], struct json *o)
{
    if (argc > 1 && !strcmp(argv[1], "json")) {
        char *text = json_to_string(o, JSSF_PRETTY | JSSF_SORT);
        unixctl_command_reply(conn, text);
        free(text);
    } else {
        struct ds out = DS_EMPTY_INITIALIZER;
        text_of(o, 0, &out);
        unixctl_command_reply(conn, ds_cstr(&out));
        ds_destroy(&out);
    }
    json_destroy(o);
}

static void cmd_status(struct unixctl_conn *conn, int argc, const char *argv[],
                       void *aux OVS_UNUSED)
{
    reply(conn, argc, argv, status_json());
}

static void add_migration(const struct cluster_migration *m, void *list)
{
    struct json *o = json_object_create();
    const struct smap_node *node;
    struct json *evidence = json_object_create();

    put_str(o, "vnic", m->vnic);
    put_str(o, "vm", m->vm);
    put_str(o, "source", m->source);
    put_str(o, "destination", m->destination);
    put_int(o, "epoch", (long long)m->epoch);
    put_str(o, "state", m->state);
    put_int(o, "started-at", m->started_at);
    put_int(o, "finished-at", m->finished_at);
    json_object_put(o, "in-database", json_boolean_create(m->written));
    SMAP_FOR_EACH (node, &m->evidence) {
        put_str(evidence, node->key, node->value);
    }
    json_object_put(o, "evidence", evidence);
    json_array_add(list, o);
}

static void cmd_migrations(struct unixctl_conn *conn, int argc, const char *argv[],
                           void *aux OVS_UNUSED)
{
    struct json *o = json_object_create(), *list = json_array_create_empty();

    cluster_migration_each(add_migration, list);
    json_object_put(o, "migrations", list);
    reply(conn, argc, argv, o);
}

static void cmd_reconcile(struct unixctl_conn *conn, int argc, const char *argv[],
                          void *aux OVS_UNUSED)
{
    struct json *o = json_object_create(), *list = json_array_create_empty();
    const struct shash_node **sorted = shash_sort(vnics_all());
    int differ = 0;

    for (size_t i = 0; i < shash_count(vnics_all()); i++) {
        const struct vnic *v = sorted[i]->data;
        const struct intent *it = intent_get(v->id);
        const struct moat_slot_info *s = engine_slot(v->id);
        struct json *e = json_object_create();
        char hex[33] = "";

        put_str(e, "vnic", v->id);
        if (it->known && it->blob)
            reconcile_hex(it->digest, hex);
        put_str(e, "intended-digest", hex);
        hex[0] = '\0';
        if (s && s->has_ruleset)
            reconcile_hex(s->digest, hex);
        put_str(e, "enforced-digest", hex);
        put_int(e, "intended-generation", it->known ? (long long)it->generation : 0);
        put_int(e, "enforced-generation", s ? (long long)s->generation : 0);
        put_str(e, "difference", v->diff ? v->problem : "");
        json_array_add(list, e);
        differ += v->diff != 0;
    }
    free(sorted);
    put_int(o, "differences", differ);
    json_object_put(o, "vnics", list);
    reply(conn, argc, argv, o);
}

static void cmd_resync(struct unixctl_conn *conn, int argc OVS_UNUSED,
                       const char *argv[] OVS_UNUSED, void *aux OVS_UNUSED)
{
    vnics_resync();
    unixctl_command_reply(conn, NULL);
}

void status_init(const char *host)
{
    self = host;
    unixctl_command_register("moat/status", "[json]", 0, 1, cmd_status, NULL);
    unixctl_command_register("moat/migrations", "[json]", 0, 1, cmd_migrations, NULL);
    unixctl_command_register("moat/reconcile", "[json]", 0, 1, cmd_reconcile, NULL);
    unixctl_command_register("moat/resync", "", 0, 0, cmd_resync, NULL);
}

void status_run(void)
{
    char text[32];

    cluster_status("fast-path", engine_up() ? "connected" : "away");
    /* It starts with the switch's first vhost-user port: a host without VMs has none. */
    cluster_problem("fast-path", engine_up() || shash_is_empty(ovsdb_ports())
                                     ? NULL
                                     : "the fast path does not answer");
    cluster_problem("database", cluster_empty() ? CLUSTER_EMPTY_TEXT : NULL);
    if (engine_up())
        cluster_status("engine", moat_ctl_hello(engine_ctl())->engine);
    cluster_problem("policy", intent_problem());
    snprintf(text, sizeof text, "%zu", shash_count(vnics_all()));
    cluster_status("vnics", text);
    snprintf(text, sizeof text, "%llu", peer_n_refused());
    cluster_status("connections-refused", text);
    snprintf(text, sizeof text, "%llu", vnics_n_refused());
    cluster_status("requests-refused", text);
    snprintf(text, sizeof text, "%llu", (unsigned long long)intent_generation());
    cluster_status("policy-generation", text);
}
