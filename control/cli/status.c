/* SPDX-License-Identifier: Apache-2.0 */
/* moatctl status: this host's engine and the cluster on one page.
 *
 * Either may be down: the other is shown all the same. */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "db.h"
#include "engine.h"
#include "out.h"
#include "smap.h"
#include "text.h"
#include "util.h"

static const struct out_column engine_columns[] = {
    {"reachable", NULL, 0},
    {"socket", "Engine", 0},
    {"error", "Cannot be reached", 0},
    {"version", "Version", 0},
    {"pid", "Process", 0},
    {"uptime_s", "Running for", 0},
    {"replacements", "Engines before it", 0},
    {"mapping", "Mapping", 0},
    {"layout_version", NULL, 0},
    {"slots_used", "Slots", 0},
    {"slots_max", NULL, 0},
    {"ports", "Ports", 0},
    {"ports_unclaimed", NULL, 0},
    {"sessions_used", "Sessions", 0},
    {"sessions_max", NULL, 0},
    {"recovered_slots", "Recovered at start", 0},
    {"recovered_sessions", NULL, 0},
    {"events_lost", "Events lost", 0},
    {"unclaimed", "Unclaimed ports get", 0},
};

static const struct out_column cluster_columns[] = {
    {"reachable", NULL, 0},
    {"database", "Database", 0},
    {"error", "Cannot be reached", 0},
    {"policy", "Policy", 0},
    {"generation", "Generation", 0},
    {"digest", "Digest", 0},
    {"applied_by", "Applied by", 0},
    {"applied_at", "Applied at", 0},
    {"vms", "VMs", 0},
    {"vms_quarantined", "In quarantine by an operator", 0},
    {"vnics", "vNICs", 0},
    {"vnics_enforced", "vNICs enforced", 0},
    {"vnics_different", "vNICs that differ", 0},
    {"hosts", NULL, 0},
    {"differences", NULL, 0},
    {"problems", NULL, 0},
};

static const struct out_column host_columns[] = {
    {"name", "HOST", 0},
    {"version", "VERSION", 0},
    {"up_since", "UP SINCE", 0},
    {"vnics", "VNICS", OUT_RIGHT},
    {"problems", "PROBLEMS", OUT_RIGHT},
    {"status", "STATUS", OUT_FLEX},
};

static const struct out_column difference_columns[] = {
    {"host", "HOST", 0},
    {"vnic", "VNIC", 0},
    {"state", "STATE", 0},
    {"generation", "ENFORCED", OUT_RIGHT},
    {"intended_generation", "INTENDED", OUT_RIGHT},
    {"problem", "DIFFERENCE", OUT_FLEX},
    {"digest", NULL, 0},
    {"intended_digest", NULL, 0},
};

static const struct out_column problem_columns[] = {
    {"host", "HOST", 0},
    {"what", "WHAT", 0},
    {"problem", "PROBLEM", OUT_FLEX},
};

/* --- the engine ------------------------------------------------------------- */

static void put_hello(struct out *o, const struct moat_ctl_hello *h, size_t unclaimed)
{
    out_string(o, "version", h->engine);
    out_integer(o, "pid", h->pid);
    out_seconds(o, "uptime_s", (int64_t)(h->now_s - MIN(h->now_s, h->started_s)));
    out_integer(o, "replacements", h->replacements);
    out_value(o, "mapping", json_text(h->mapping),
              xasprintf("%s (layout %u)", h->mapping, h->layout_version));
    out_integer(o, "layout_version", h->layout_version);
    out_value(o, "slots_used", json_integer_create(h->slots_used),
              xasprintf("%u of %u", h->slots_used, h->n_slots));
    out_integer(o, "slots_max", h->n_slots);
    out_value(o, "ports", json_integer_create(h->n_ports),
              unclaimed ? xasprintf("%u, %zu without a slot", h->n_ports, unclaimed)
                        : xasprintf("%u", h->n_ports));
    out_integer(o, "ports_unclaimed", (int64_t)unclaimed);
    out_value(o, "sessions_used", json_integer_create(h->sessions_used),
              xasprintf("%u of %u (%.1f%%)", h->sessions_used, h->sessions_max,
                        h->sessions_max ? 100.0 * h->sessions_used / h->sessions_max : 0.0));
    out_integer(o, "sessions_max", h->sessions_max);
    out_value(o, "recovered_slots", json_integer_create(h->recovered_slots),
              xasprintf("%u slots, %u sessions", h->recovered_slots, h->recovered_sessions));
    out_integer(o, "recovered_sessions", h->recovered_sessions);
    out_integer(o, "events_lost", (int64_t)MIN(h->events_lost, (uint64_t)INT64_MAX));
    out_string(o, "unclaimed", moat_fail_name(h->unclaimed));
}

static struct out *look_at_engine(const struct cli *cli, bool *ok)
{
    struct out *o = out_create(engine_columns, ARRAY_SIZE(engine_columns), OUT_TABLE);
    struct moat_port_info *ports = NULL;
    size_t n_ports = 0, unclaimed = 0;
    struct moat_ctl *c = NULL;
    char why[512] = "";
    int rc = engine_try_open(cli, &c, why, sizeof why);

    if (!rc && (rc = moat_ctl_ports(c, &ports, &n_ports)))
        snprintf(why, sizeof why, "%s", moat_ctl_error(c));
    for (size_t i = 0; i < n_ports; i++)
        unclaimed += !ports[i].claimed;
    *ok = !rc;
    out_row(o);
    out_bool(o, "reachable", !rc);
    out_string(o, "socket", cli->ctl_path);
    if (rc)
        out_string(o, "error", *why ? why : ovs_strerror(-rc));
    else
        put_hello(o, moat_ctl_hello(c), unclaimed);
    free(ports);
    moat_ctl_close(c);
    return o;
}

/* --- the cluster ------------------------------------------------------------ */

struct cluster {
    struct out *summary, *hosts, *differences, *problems;
};

static void cluster_init(struct cluster *c)
{
    c->summary = out_create(cluster_columns, ARRAY_SIZE(cluster_columns), OUT_TABLE);
    c->hosts = out_create(host_columns, ARRAY_SIZE(host_columns), OUT_TABLE);
    c->differences = out_create(difference_columns, ARRAY_SIZE(difference_columns), OUT_TABLE);
    c->problems = out_create(problem_columns, ARRAY_SIZE(problem_columns), OUT_TABLE);
}

static void cluster_destroy(struct cluster *c)
{
    out_destroy(c->summary);
    out_destroy(c->hosts);
    out_destroy(c->differences);
    out_destroy(c->problems);
}

/* What is not as it should be; NULL: nothing. */
static char *difference_of(const struct moatrec_enforced *e, int64_t generation)
{
    if (*e->problem)
        return xstrdup(e->problem);
    if (!strcmp(e->state, "departed"))
        return NULL;
    if (e->generation != e->intended_generation)
        return xstrdup("another generation is enforced than intended");
    if (strcmp(e->digest, e->intended_digest))
        return xstrdup("another ruleset is enforced than intended");
    if (e->intended_generation < generation)
        return xasprintf("the host has not taken up generation %" PRId64 " yet", generation);
    return NULL;
}

static void put_difference(struct out *o, const struct moatrec_enforced *e, const char *text)
{
    out_row(o);
    out_string(o, "host", e->host);
    out_string(o, "vnic", e->vnic_id);
    out_string(o, "state", e->state);
    out_integer(o, "generation", e->generation);
    out_integer(o, "intended_generation", e->intended_generation);
    out_string(o, "problem", text);
    out_string(o, "digest", e->digest);
    out_string(o, "intended_digest", e->intended_digest);
}

static void look_at_enforced(const struct db *db, struct cluster *c, int64_t generation)
{
    const struct moatrec_enforced *e;
    size_t n = 0;

    MOATREC_ENFORCED_FOR_EACH(e, db->idl)
    {
        char *text = difference_of(e, generation);

        n += strcmp(e->state, "departed") != 0;
        if (text)
            put_difference(c->differences, e, text);
        free(text);
    }
    out_integer(c->summary, "vnics_enforced", (int64_t)n);
    out_integer(c->summary, "vnics_different", (int64_t)out_n_rows(c->differences));
}

static int compare_hosts(const void *a, const void *b)
{
    const struct moatrec_host *const *x = a, *const *y = b;

    return strcmp((*x)->name, (*y)->name);
}

static size_t vnics_of(const struct db *db, const char *host)
{
    const struct moatrec_vnic *v;
    size_t n = 0;

    MOATREC_VNIC_FOR_EACH(v, db->idl)
    n += v->holder && !strcmp(v->holder, host);
    return n;
}

static void put_host(const struct db *db, struct cluster *c, const struct moatrec_host *h)
{
    const struct smap_node **nodes = smap_sort(&h->problems);

    out_row(c->hosts);
    out_string(c->hosts, "name", h->name);
    out_string(c->hosts, "version", h->version);
    out_time(c->hosts, "up_since", h->started_at);
    out_integer(c->hosts, "vnics", (int64_t)vnics_of(db, h->name));
    out_integer(c->hosts, "problems", (int64_t)smap_count(&h->problems));
    out_smap(c->hosts, "status", &h->status);
    for (size_t i = 0; i < smap_count(&h->problems); i++) {
        out_row(c->problems);
        out_string(c->problems, "host", h->name);
        out_string(c->problems, "what", nodes[i]->key);
        out_string(c->problems, "problem", nodes[i]->value);
    }
    free(nodes);
}

static void look_at_hosts(const struct db *db, struct cluster *c)
{
    const struct moatrec_host *h, **all = NULL;
    size_t n = 0, allocated = 0;

    MOATREC_HOST_FOR_EACH(h, db->idl)
    {
        if (n >= allocated)
            all = x2nrealloc(all, &allocated, sizeof *all);
        all[n++] = h;
    }
    if (n)
        qsort(all, n, sizeof *all, compare_hosts);
    for (size_t i = 0; i < n; i++)
        put_host(db, c, all[i]);
    free(all);
}

static void look_at_policy(const struct db *db, struct out *o)
{
    const struct moatrec_global *g = moatrec_global_first(db->idl);
    const struct moatrec_vm *vm;
    size_t n_vms = 0, n_vnics = 0, n_quarantined = 0;

    if (g && g->policy) {
        out_string(o, "policy", g->policy->name);
        out_string(o, "digest", g->policy->digest);
        out_string(o, "applied_by", g->policy->applied_by);
        out_time(o, "applied_at", g->policy->applied_at);
    } else {
        out_value(o, "policy", json_null_create(), xstrdup("none: every VM is in quarantine"));
    }
    out_integer(o, "generation", g ? g->generation : 0);
    MOATREC_VM_FOR_EACH(vm, db->idl)
    {
        n_vms++;
        n_vnics += vm->n_vnics;
        n_quarantined += vm->quarantine;
    }
    out_integer(o, "vms", (int64_t)n_vms);
    out_integer(o, "vms_quarantined", (int64_t)n_quarantined);
    out_integer(o, "vnics", (int64_t)n_vnics);
}

static bool look_at_cluster(const struct cli *cli, struct cluster *c)
{
    struct db db;
    char *error = db_try_open(&db, cli, DB_GLOBAL | DB_VM | DB_HOST | DB_ENFORCED);

    out_row(c->summary);
    out_bool(c->summary, "reachable", !error);
    out_string(c->summary, "database", cli->db_remote);
    if (error) {
        out_string(c->summary, "error", error);
        free(error);
        return false;
    }
    const struct moatrec_global *g = moatrec_global_first(db.idl);
    look_at_policy(&db, c->summary);
    look_at_enforced(&db, c, g ? g->generation : 0);
    look_at_hosts(&db, c);
    out_value(c->summary, "hosts", out_json(c->hosts), NULL);
    out_value(c->summary, "differences", out_json(c->differences), NULL);
    out_value(c->summary, "problems", out_json(c->problems), NULL);
    db_close(&db);
    return true;
}

static void print_part(struct out *o)
{
    if (out_n_rows(o)) {
        printf("\n");
        out_end(o, stdout);
    }
}

static int show_status(const struct cli *cli)
{
    struct cluster cluster;
    bool engine_ok, cluster_ok;
    struct out *engine = look_at_engine(cli, &engine_ok);

    cluster_init(&cluster);
    cluster_ok = look_at_cluster(cli, &cluster);
    if (cli->json) {
        struct json *j = json_object_create();

        json_object_put(j, "engine", out_json_first(engine));
        json_object_put(j, "cluster", out_json_first(cluster.summary));
        json_print(j, stdout);
    } else {
        out_print_record(engine, stdout);
        printf("\n");
        out_print_record(cluster.summary, stdout);
        print_part(cluster.hosts);
        print_part(cluster.differences);
        print_part(cluster.problems);
    }
    if (!engine_ok)
        cli_error("cannot reach the engine at %s", cli->ctl_path);
    if (!cluster_ok)
        cli_error("cannot reach the Moat database at %s", cli->db_remote);
    out_destroy(engine);
    cluster_destroy(&cluster);
    return engine_ok && cluster_ok ? CLI_OK : CLI_FAILED;
}

const struct cli_command status_commands[] = {
    {"status", "", "show this host's engine and the cluster",
     "If one of the two cannot be reached, the other is shown and the exit code is 1.\n"
     "A vNIC differs if what a host enforces is not what it intends, or not yet what the\n"
     "policy in force says.",
     0, 0, 0, true, show_status},
    {.name = NULL},
};
