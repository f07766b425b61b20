/* SPDX-License-Identifier: Apache-2.0 */
/* moatctl host: the hosts that have Moat, and their settings. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "args.h"
#include "cli.h"
#include "db.h"
#include "out.h"
#include "smap.h"
#include "sset.h"
#include "util.h"

static const struct out_column columns[] = {
    {"name", "NAME", 0},
    {"peer_address", "PEER", 0},
    {"version", "VERSION", 0},
    {"started_at", "STARTED", 0},
    {"settings", "SETTINGS", OUT_FLEX},
    {"status", "STATUS", OUT_FLEX},
    {"problems", "PROBLEMS", OUT_FLEX},
};

static int compare(const void *a, const void *b)
{
    const struct moatrec_host *const *x = a, *const *y = b;

    return strcmp((*x)->name, (*y)->name);
}

static int list_hosts(const struct cli *cli)
{
    const struct moatrec_host *h, **all = NULL;
    size_t count = 0, allocated = 0;
    struct db db;

    if (!db_open(&db, cli, DB_HOST))
        return CLI_FAILED;
    MOATREC_HOST_FOR_EACH(h, db.idl)
    {
        if (count >= allocated)
            all = x2nrealloc(all, &allocated, sizeof *all);
        all[count++] = h;
    }
    if (count)
        qsort(all, count, sizeof *all, compare);

    struct out *o = out_create(columns, ARRAY_SIZE(columns), cli->json ? OUT_JSON : OUT_TABLE);
    for (size_t i = 0; i < count; i++) {
        out_row(o);
        out_string(o, "name", all[i]->name);
        out_string(o, "peer_address", all[i]->peer_address);
        out_string(o, "version", all[i]->version);
        out_time(o, "started_at", all[i]->started_at);
        out_smap(o, "settings", &all[i]->settings);
        out_smap(o, "status", &all[i]->status);
        out_smap(o, "problems", &all[i]->problems);
    }
    out_end(o, stdout);
    out_destroy(o);
    free(all);
    db_close(&db);
    return CLI_OK;
}

/* Settings that the agent reads from the database, and what they may be. */
static const struct {
    const char *key, *values[3];
} known[] = {
    {"on-missing-policy", {"block", "allow"}},
    {"unprotected-taps", {"report", "block"}},
};

/* False: the value would be taken for the default, and that has been said. */
static bool check_known(const struct cli *cli, const char *key, const char *value)
{
    for (size_t i = 0; i < ARRAY_SIZE(known); i++) {
        if (strcmp(key, known[i].key))
            continue;
        for (const char *const *v = known[i].values; *v; v++)
            if (!*value || !strcmp(value, *v))
                return true;
        cli_usage(cli, "%s: \"%s\" is neither %s nor %s", key, value, known[i].values[0],
                  known[i].values[1]);
        return false;
    }
    if (*value)
        cli_error("warning: no host of this version has a setting \"%s\"", key);
    return true;
}

/* Reads "key=value"; an empty value removes the key. */
static bool read_setting(const struct cli *cli, const char *word, struct smap *set,
                         struct sset *gone)
{
    const char *value;
    size_t n;

    if (!arg_split(word, &n, &value)) {
        cli_usage(cli, "\"%s\" is not key=value", word);
        return false;
    }
    char *key = xmemdup0(word, n);
    char *error = arg_name(key);
    if (!error)
        error = arg_value(value);
    if (error)
        cli_usage(cli, "setting \"%s\" %s", word, error);
    bool ok = !error && check_known(cli, key, value);
    if (ok && *value)
        smap_replace(set, key, value);
    sset_add(gone, key);
    free(key);
    free(error);
    return ok;
}

static int write_settings(const struct cli *cli, const struct smap *set, const struct sset *gone)
{
    const char *name = cli->args[0], *key;
    const struct moatrec_host *h;
    int status = CLI_FAILED;
    struct db db;

    if (!db_open(&db, cli, DB_HOST))
        return CLI_FAILED;
    h = db_find_host(&db, name);
    if (!h) {
        cli_error("there is no host \"%s\"", name);
        cli_hint("A host is there once its moatd has connected. See: moatctl host list");
    } else {
        struct json *ops = db_ops(cli), *mutations = json_array_create_empty();
        struct json *pairs = json_array_create_empty();
        const struct smap_node *node;

        SSET_FOR_EACH(key, gone)
        json_array_add(mutations, db_triple("settings", "delete",
                                            db_set(json_array_create_1(json_string_create(key)))));
        SMAP_FOR_EACH(node, set)
        json_array_add(pairs, db_pair(node->key, node->value));
        json_array_add(mutations, db_triple("settings", "insert", db_map(pairs)));
        db_require_row(ops, "Host", &h->header_.uuid, "name", name);
        db_mutate(ops, "Host", db_where_uuid(&h->header_.uuid), mutations);
        status = db_commit(&db, ops);
    }
    db_close(&db);
    return status;
}

static int set_host(const struct cli *cli)
{
    struct smap set = SMAP_INITIALIZER(&set);
    struct sset gone = SSET_INITIALIZER(&gone);
    bool ok = true;

    for (size_t i = 1; i < cli->n_args && ok; i++)
        ok = read_setting(cli, cli->args[i], &set, &gone);
    int status = ok ? write_settings(cli, &set, &gone) : CLI_USAGE;
    smap_destroy(&set);
    sset_destroy(&gone);
    return status;
}

const struct cli_command host_commands[] = {
    {"host list", "", "list hosts and their settings", NULL, 0, 0, 0, true, list_hosts},
    {"host set", "NAME KEY=VALUE...", "change settings of a host",
     "KEY= alone removes the setting: the default holds again. Settings:\n\n"
     "  on-missing-policy  block or allow: what a vNIC without policy gets\n"
     "  unprotected-taps   report or block: a VM's kernel tap that is behind no slot",
     0, 2, 1000, false, set_host},
    {.name = NULL},
};
