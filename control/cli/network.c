/* SPDX-License-Identifier: Apache-2.0 */
/* moatctl network: the networks in which addresses belong to VMs. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "args.h"
#include "cli.h"
#include "db.h"
#include "out.h"
#include "sset.h"
#include "svec.h"
#include "util.h"

/* What a network has a set of. */
static const struct {
    const char *key, *column;
    bool is_prefix;
} kinds[] = {
    {"subnet", "subnets", true},     {"gateway", "gateways", false},
    {"dhcp", "dhcp_servers", false}, {"metadata", "metadata_servers", false},
    {"router", "routers", false},
};

static const struct out_column columns[] = {
    {"name", "NAME", 0},
    {"subnets", "SUBNETS", OUT_FLEX},
    {"gateways", "GATEWAYS", OUT_FLEX},
    {"dhcp_servers", "DHCP", OUT_FLEX},
    {"metadata_servers", "METADATA", OUT_FLEX},
    {"routers", "ROUTERS", OUT_FLEX},
    {"vnics", "VNICS", OUT_RIGHT},
};

static size_t count_vnics(const struct db *db, const struct moatrec_network *network)
{
    const struct moatrec_vnic *v;
    size_t n = 0;

    MOATREC_VNIC_FOR_EACH(v, db->idl)
    n += v->network == network;
    return n;
}

static int compare(const void *a, const void *b)
{
    const struct moatrec_network *const *x = a, *const *y = b;

    return strcmp((*x)->name, (*y)->name);
}

static int list_networks(const struct cli *cli)
{
    const struct moatrec_network *n, **all = NULL;
    size_t count = 0, allocated = 0;
    struct db db;

    if (!db_open(&db, cli, DB_NETWORK | DB_VM))
        return CLI_FAILED;
    MOATREC_NETWORK_FOR_EACH(n, db.idl)
    {
        if (count >= allocated)
            all = x2nrealloc(all, &allocated, sizeof *all);
        all[count++] = n;
    }
    if (count)
        qsort(all, count, sizeof *all, compare);

    struct out *o = out_create(columns, ARRAY_SIZE(columns), cli->json ? OUT_JSON : OUT_TABLE);
    for (size_t i = 0; i < count; i++) {
        out_row(o);
        out_string(o, "name", all[i]->name);
        out_strings(o, "subnets", all[i]->subnets, all[i]->n_subnets);
        out_strings(o, "gateways", all[i]->gateways, all[i]->n_gateways);
        out_strings(o, "dhcp_servers", all[i]->dhcp_servers, all[i]->n_dhcp_servers);
        out_strings(o, "metadata_servers", all[i]->metadata_servers, all[i]->n_metadata_servers);
        out_strings(o, "routers", all[i]->routers, all[i]->n_routers);
        out_integer(o, "vnics", (int64_t)count_vnics(&db, all[i]));
    }
    out_end(o, stdout);
    out_destroy(o);
    free(all);
    db_close(&db);
    return CLI_OK;
}

/* Adds one "key=value" to its set. */
static bool read_pair(const struct cli *cli, const char *pair, struct sset sets[])
{
    const char *value;
    size_t key_len, k;

    if (!arg_split(pair, &key_len, &value)) {
        cli_usage(cli, "\"%s\" is not key=value", pair);
        return false;
    }
    for (k = 0; k < ARRAY_SIZE(kinds); k++)
        if (strlen(kinds[k].key) == key_len && !memcmp(kinds[k].key, pair, key_len))
            break;
    if (k == ARRAY_SIZE(kinds)) {
        cli_usage(cli, "\"%.*s\" is none of subnet, gateway, dhcp, metadata, router", (int)key_len,
                  pair);
        return false;
    }
    char *canonical;
    char *error =
        kinds[k].is_prefix ? arg_prefix(value, &canonical) : arg_address(value, &canonical);
    if (error) {
        cli_usage(cli, "%s \"%s\" %s", kinds[k].key, value, error);
        free(error);
        return false;
    }
    sset_add_and_free(&sets[k], canonical);
    return true;
}

static struct json *set_of(const struct sset *set)
{
    struct json *array = json_array_create_empty();
    const char *s;

    SSET_FOR_EACH(s, set)
    json_array_add(array, json_string_create(s));
    return db_set(array);
}

static int insert_network(const struct cli *cli, const char *name, const struct sset sets[])
{
    int status = CLI_FAILED;
    struct db db;

    if (!db_open(&db, cli, DB_NETWORK))
        return CLI_FAILED;
    if (db_find_network(&db, name)) {
        cli_error("there is a network \"%s\" already", name);
        cli_hint("See: moatctl network list");
    } else {
        struct json *ops = db_ops(cli), *row = json_object_create();

        json_object_put_string(row, "name", name);
        for (size_t k = 0; k < ARRAY_SIZE(kinds); k++)
            json_object_put(row, kinds[k].column, set_of(&sets[k]));
        db_insert(ops, "Network", NULL, row);
        status = db_commit(&db, ops);
    }
    db_close(&db);
    return status;
}

static int add_network(const struct cli *cli)
{
    struct sset sets[ARRAY_SIZE(kinds)];
    char *error = arg_name(cli->args[0]);
    bool ok = true;
    int status = CLI_USAGE;

    if (error) {
        status = cli_usage(cli, "name \"%s\" %s", cli->args[0], error);
        free(error);
        return status;
    }
    for (size_t k = 0; k < ARRAY_SIZE(kinds); k++)
        sset_init(&sets[k]);
    for (size_t i = 1; i < cli->n_args && ok; i++)
        ok = read_pair(cli, cli->args[i], sets);
    if (ok)
        status = insert_network(cli, cli->args[0], sets);
    for (size_t k = 0; k < ARRAY_SIZE(kinds); k++)
        sset_destroy(&sets[k]);
    return status;
}

static int del_network(const struct cli *cli)
{
    const char *name = cli->args[0];
    const struct moatrec_network *network;
    const struct moatrec_vm *vm;
    size_t users = 0;
    int status = CLI_FAILED;
    struct db db;

    if (!db_open(&db, cli, DB_NETWORK | DB_VM))
        return CLI_FAILED;
    network = db_find_network(&db, name);
    if (!network) {
        cli_error("there is no network \"%s\"", name);
        cli_hint("See: moatctl network list");
        goto out;
    }
    MOATREC_VM_FOR_EACH(vm, db.idl)
    for (size_t i = 0; i < vm->n_vnics; i++)
        if (vm->vnics[i]->network == network && !users++) {
            cli_error("network \"%s\" is in use: by vNIC \"%s\" of VM \"%s\"", name,
                      vm->vnics[i]->vnic_id, vm->name);
            cli_hint("Remove its vNICs first: moatctl vm vnic del VM ID");
        }
    if (users)
        goto out;

    struct json *ops = db_ops(cli);
    db_require_row(ops, "Network", &network->header_.uuid, "name", name);
    db_delete(ops, "Network", db_where_uuid(&network->header_.uuid));
    status = db_commit(&db, ops);
out:
    db_close(&db);
    return status;
}

const struct cli_command network_commands[] = {
    {"network list", "", "list networks", NULL, 0, 0, 0, true, list_networks},
    {"network add",
     "NAME [subnet=PREFIX]... [gateway=ADDRESS]... [dhcp=ADDRESS]... [metadata=ADDRESS]... "
     "[router=ADDRESS]...",
     "add a network",
     "An address belongs to a VM within its network: several networks may use the same\n"
     "addresses. Gateways, DHCP and metadata servers are identities that policy knows;\n"
     "routers are who may send IPv6 router advertisements.",
     0, 1, 1000, false, add_network},
    {"network del", "NAME", "remove a network that no vNIC uses", NULL, 0, 1, 1, false,
     del_network},
    {.name = NULL},
};
