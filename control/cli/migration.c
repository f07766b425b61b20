/* SPDX-License-Identifier: Apache-2.0 */
/* moatctl migration: what moved, and the evidence for how it went.
 *
 * The evidence is a map that the agents write.  Keys that are known get a place and
 * a unit; others are shown as they are, so that a newer agent's are not lost. */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "db.h"
#include "out.h"
#include "smap.h"
#include "text.h"
#include "util.h"

static const struct out_column columns[] = {
    {"started_at", "STARTED", 0},
    {"vm", "VM", 0},
    {"vnic", "VNIC", 0},
    {"source", "FROM", 0},
    {"destination", "TO", 0},
    {"epoch", "EPOCH", OUT_RIGHT},
    {"state", "STATE", 0},
    {"duration_s", "TOOK", OUT_RIGHT},
    {"sessions", "SESSIONS", OUT_RIGHT},
    {"hold", "HOLD", OUT_RIGHT},
    {"decided", "DECIDED", OUT_FLEX},
    {"finished_at", NULL, 0},
    {"evidence", NULL, 0},
};

static const struct out_column show_columns[] = {
    {"vm", "VM", 0},
    {"vnic", "vNIC", 0},
    {"source", "From", 0},
    {"destination", "To", 0},
    {"epoch", "Epoch", 0},
    {"state", "State", 0},
    {"started_at", "Started", 0},
    {"finished_at", "Finished", 0},
    {"duration_s", "Took", 0},
    {"evidence", NULL, 0},
};

/* Evidence that is known, in the order in which it is shown. */
static const struct evidence_kind {
    const char *key, *head;
    enum { WORDS, NUMBER, MICROSECONDS, MILLISECONDS } unit;
} known[] = {
    {"decided-by", "Decided by", WORDS},
    {"policy-from", "Policy from", WORDS},
    {"policy-generation", "Policy generation", NUMBER},
    {"sessions-live-source", "Sessions live at source", NUMBER},
    {"sessions-live-destination", "Sessions live at dest.", NUMBER},
    {"sessions-sent", "Session records sent", NUMBER},
    {"sessions-accepted", "Records accepted", NUMBER},
    {"sessions-refused", "Records refused", NUMBER},
    {"rounds", "Rounds", NUMBER},
    {"final-delta", "Records in final delta", NUMBER},
    {"final-bytes", "Bytes in final delta", NUMBER},
    {"wait-ms", "Source waited for", MILLISECONDS},
    {"hold-us", "Packets held for", MICROSECONDS},
};

static const struct evidence_kind *find_kind(const char *key)
{
    for (size_t i = 0; i < ARRAY_SIZE(known); i++)
        if (!strcmp(key, known[i].key))
            return &known[i];
    return NULL;
}

static const char *evidence(const struct moatrec_migration *m, const char *key)
{
    return smap_get_def(&m->evidence, key, "");
}

/* A number of at most 15 digits, maybe with a fraction: exact in JSON and in units. */
static bool read_number(const char *value, double *number)
{
    size_t digits = strspn(value, "0123456789"), all = strspn(value, "0123456789.");

    if (!digits || all > 15 || value[all] || all == digits + 1)
        return false;
    char *end;
    *number = strtod(value, &end);
    return !*end;
}

static char *with_unit(const char *value, int unit)
{
    double number;

    if ((unit != MICROSECONDS && unit != MILLISECONDS) || !read_number(value, &number))
        return xstrdup(value);
    return text_microseconds((int64_t)(unit == MILLISECONDS ? number * 1000 : number));
}

/* Numbers become numbers, under their keys as they are. */
static struct json *evidence_json(const struct moatrec_migration *m)
{
    struct json *object = json_object_create();
    const struct smap_node *node;

    SMAP_FOR_EACH(node, &m->evidence)
    {
        const struct evidence_kind *kind = find_kind(node->key);
        struct json *value;
        double number;

        if (!kind || kind->unit == WORDS || !read_number(node->value, &number))
            value = json_text(node->value);
        else if (strchr(node->value, '.'))
            value = json_real_create(number);
        else
            value = json_integer_create((long long)number);
        json_object_put_nocopy(object, text_utf8(node->key), value);
    }
    return object;
}

static void put_migration(struct out *o, const struct moatrec_migration *m)
{
    out_row(o);
    out_string(o, "vm", m->vm);
    out_string(o, "vnic", m->vnic_id);
    out_string(o, "source", m->source);
    out_string(o, "destination", m->destination);
    out_integer(o, "epoch", m->epoch);
    out_string(o, "state", m->state);
    out_time(o, "started_at", m->started_at);
    out_time(o, "finished_at", m->finished_at);
    if (m->started_at > 0 && m->finished_at >= m->started_at)
        out_seconds(o, "duration_s", m->finished_at - m->started_at);
    else
        out_value(o, "duration_s", json_null_create(), NULL);
}

static void put_summary(struct out *o, const struct moatrec_migration *m)
{
    const char *sent = evidence(m, "sessions-sent"), *accepted = evidence(m, "sessions-accepted");

    out_value(o, "sessions", NULL,
              *sent || *accepted
                  ? xasprintf("%s/%s", *accepted ? accepted : "?", *sent ? sent : "?")
                  : xstrdup(""));
    out_value(o, "hold", NULL, with_unit(evidence(m, "hold-us"), MICROSECONDS));
    out_value(o, "decided", NULL, xstrdup(evidence(m, "decided-by")));
    out_value(o, "evidence", evidence_json(m), NULL);
}

/* Newest last. */
static int compare(const void *a, const void *b)
{
    const struct moatrec_migration *const *x = a, *const *y = b;

    if ((*x)->started_at != (*y)->started_at)
        return (*x)->started_at < (*y)->started_at ? -1 : 1;
    if ((*x)->epoch != (*y)->epoch)
        return (*x)->epoch < (*y)->epoch ? -1 : 1;
    return strcmp((*x)->vnic_id, (*y)->vnic_id);
}

/* Migrations of a VM or vNIC (NULL: any), sorted. */
static const struct moatrec_migration **find(const struct db *db, const char *vm, const char *name,
                                             size_t *n)
{
    const struct moatrec_migration *m, **all = NULL;
    size_t allocated = 0;

    *n = 0;
    MOATREC_MIGRATION_FOR_EACH(m, db->idl)
    {
        if ((vm && strcmp(m->vm, vm)) || (name && strcmp(m->vm, name) && strcmp(m->vnic_id, name)))
            continue;
        if (*n >= allocated)
            all = x2nrealloc(all, &allocated, sizeof *all);
        all[(*n)++] = m;
    }
    if (*n)
        qsort(all, *n, sizeof *all, compare);
    return all;
}

static int list_migrations(const struct cli *cli)
{
    const struct moatrec_migration **all;
    int64_t limit = INT64_MAX;
    struct db db;
    size_t n;

    if (!cli_number(cli, CLI_OPT_LIMIT, 1, INT64_MAX, &limit))
        return CLI_USAGE;
    if (!db_open(&db, cli, DB_MIGRATION))
        return CLI_FAILED;
    all = find(&db, cli->opts[CLI_OPT_VM], NULL, &n);

    struct out *o = out_create(columns, ARRAY_SIZE(columns), cli->json ? OUT_JSON : OUT_TABLE);
    for (size_t i = n - MIN(n, (uint64_t)limit); i < n; i++) {
        put_migration(o, all[i]);
        put_summary(o, all[i]);
    }
    out_end(o, stdout);
    out_destroy(o);
    free(all);
    db_close(&db);
    return CLI_OK;
}

static void print_line(const char *head, const char *value)
{
    char *h = text_plain(head), *v = text_plain(value);

    printf("  %s:%*s%s\n", h, (int)(text_width(h) < 25 ? 25 - text_width(h) : 1), "", v);
    free(h);
    free(v);
}

static void print_evidence(const struct moatrec_migration *m)
{
    const struct smap_node **nodes = smap_sort(&m->evidence);

    printf("Evidence:\n");
    for (size_t i = 0; i < ARRAY_SIZE(known); i++)
        if (smap_get(&m->evidence, known[i].key)) {
            char *v = with_unit(evidence(m, known[i].key), known[i].unit);

            print_line(known[i].head, v);
            free(v);
        }
    for (size_t i = 0; i < smap_count(&m->evidence); i++)
        if (!find_kind(nodes[i]->key))
            print_line(nodes[i]->key, nodes[i]->value);
    free(nodes);
}

static int show_migrations(const struct cli *cli)
{
    const struct moatrec_migration **all;
    struct db db;
    size_t n;

    if (!db_open(&db, cli, DB_MIGRATION))
        return CLI_FAILED;
    all = find(&db, NULL, cli->args[0], &n);
    if (!n) {
        cli_error("no migration of a vNIC or VM \"%s\" is known", cli->args[0]);
        cli_hint("See: moatctl migration list");
    }
    struct json *array = json_array_create_empty();
    for (size_t i = 0; i < n; i++) {
        struct out *o = out_create(show_columns, ARRAY_SIZE(show_columns), OUT_TABLE);

        put_migration(o, all[i]);
        out_value(o, "evidence", evidence_json(all[i]), NULL);
        if (cli->json) {
            json_array_add(array, out_json_first(o));
        } else {
            if (i)
                printf("\n");
            out_print_record(o, stdout);
            print_evidence(all[i]);
        }
        out_destroy(o);
    }
    if (cli->json && n)
        json_print(array, stdout);
    else
        json_destroy(array);
    free(all);
    db_close(&db);
    return n ? CLI_OK : CLI_FAILED;
}

const struct cli_command migration_commands[] = {
    {"migration list", "", "list migrations, the newest last",
     "SESSIONS are session records accepted/sent, HOLD is how long the VM's packets waited\n"
     "for its state, DECIDED says what decided how the destination opened.",
     CLI_O(VM) | CLI_O(LIMIT), 0, 0, true, list_migrations},
    {"migration show", "VNIC|VM", "show migrations with their evidence", NULL, 0, 1, 1, false,
     show_migrations},
    {.name = NULL},
};
