/* SPDX-License-Identifier: Apache-2.0 */

/* One parsed policy and one inventory for the host; compiled per vNIC when asked
 * for, once for each change of the database.  Several changes that arrive in one
 * turn of the poll loop cost one compilation. */

#include <config.h>

#include "intent.h"

#include <stdlib.h>
#include <string.h>

#include "alert.h"
#include "cluster.h"
#include "moat/ruleset.h"
#include "openvswitch/shash.h"
#include "openvswitch/vlog.h"
#include "policy/policy.h"
#include "util.h"

VLOG_DEFINE_THIS_MODULE(intent);

static struct moat_policy *policy;
static struct moat_inventory *inventory;
static char *text; /* of `policy`, or of the one that was refused */
static uint64_t text_generation, generation;
static unsigned seen, serial = 1;
static char *policy_problem, *inventory_problem;
static struct shash cache = SHASH_INITIALIZER(&cache);

static void set_problem(char **p, const char *kind, char *why)
{
    if (why && (!*p || strcmp(*p, why)))
        alert(SEV_ALARM, kind, "", "", "%s", why);
    free(*p);
    *p = why;
}

static void refresh_policy(void)
{
    struct cluster_policy now;

    cluster_policy(&now);
    if (text_generation == now.generation && !text == !now.text &&
        (!text || !strcmp(text, now.text)))
        return;
    free(text);
    text = nullable_xstrdup(now.text);
    text_generation = now.generation;
    struct moat_policy *fresh = NULL;
    if (text) {
        struct moat_diags *diags = moat_diags_create();
        fresh = moat_policy_parse(text, strlen(text), now.name, diags);
        if (!fresh) {
            char *what = moat_diags_text(diags);
            set_problem(&policy_problem, "policy-refused",
                        xasprintf("policy generation %llu is refused, %llu stays in force: %s",
                                  (unsigned long long)now.generation,
                                  (unsigned long long)generation, what ? what : "?"));
            free(what);
        }
        moat_diags_destroy(diags);
        if (!fresh)
            return;
    }
    moat_policy_destroy(policy);
    policy = fresh;
    generation = now.generation;
    set_problem(&policy_problem, "policy-refused", NULL);
    VLOG_INFO("policy \"%s\", generation %llu", now.name ? now.name : "none",
              (unsigned long long)generation);
}

static void refresh_inventory(void)
{
    char *why;
    struct moat_inventory *fresh = cluster_inventory(&why);

    if (!fresh) {
        set_problem(&inventory_problem, "inventory-refused",
                    xasprintf("the database's inventory is refused, the last good one stays: %s",
                              why));
        free(why);
        return;
    }
    free(why);
    moat_inventory_destroy(inventory);
    inventory = fresh;
    set_problem(&inventory_problem, "inventory-refused", NULL);
}

void intent_run(void)
{
    if (cluster_seqno() == seen || !cluster_known())
        return;
    seen = cluster_seqno();
    refresh_policy();
    refresh_inventory();
    serial++;
}

/* Compiled into what is in force, which may be the last good inventory: an operator's
 * quarantine must not wait until somebody has mended another VM's row. */
static void compile(struct intent *it, const char *vnic)
{
    int i = inventory ? moat_inventory_find_vnic(inventory, vnic) : -1;
    struct moat_diags *diags;
    uint8_t *blob = NULL;
    size_t len = 0;

    if (i < 0) {
        ovs_strlcpy(it->problem, "not in the inventory that is in force", sizeof it->problem);
        return;
    }
    unsigned vm = moat_inventory_vm_of(inventory, (unsigned)i);
    moat_inventory_set_quarantine(inventory, vm, it->by_operator);
    moat_policy_settings(policy, inventory, vm, &it->conf.settings);
    diags = moat_diags_create();
    int rc = moat_policy_compile(policy, inventory, (unsigned)i, generation, &blob, &len, diags);
    if (rc || len < sizeof(struct moat_ruleset_head)) {
        char *what = moat_diags_text(diags);
        snprintf(it->problem, sizeof it->problem, "the policy does not compile: %s",
                 what && *what ? what : ovs_strerror(-rc));
        free(what);
        free(blob);
    } else {
        const struct moat_ruleset_head *h = (const void *)blob;
        free(it->blob);
        it->blob = blob;
        it->len = len;
        it->generation = h->generation;
        memcpy(it->digest, h->digest, sizeof it->digest);
    }
    moat_diags_destroy(diags);
}

const struct intent *intent_get(const char *vnic)
{
    struct intent *it = shash_find_data(&cache, vnic);
    struct cluster_vnic row;

    if (!it) {
        it = xzalloc(sizeof *it);
        moat_settings_init(&it->conf.settings);
        shash_add(&cache, vnic, it);
    }
    if (it->serial == serial)
        return it;
    it->serial = serial;
    it->problem[0] = '\0';
    cluster_vnic(vnic, &row);
    if (!row.known) {
        it->known = it->known && row.problem[0]; /* a bad row: keep what we had */
        if (it->known && it->by_operator != row.quarantine) {
            it->by_operator = row.quarantine;
            compile(it, vnic);
        }
        ovs_strlcpy(it->problem, row.problem, sizeof it->problem);
        return it;
    }
    it->known = true;
    it->by_operator = row.quarantine;
    struct moat_settings settings = it->conf.settings;
    it->conf = row.conf;
    it->conf.settings = settings;
    compile(it, vnic);
    return it;
}

unsigned intent_serial(void)
{
    return serial;
}

const char *intent_problem(void)
{
    return policy_problem ? policy_problem : inventory_problem;
}

uint64_t intent_generation(void)
{
    return generation;
}

void intent_exit(void)
{
    struct shash_node *node;

    SHASH_FOR_EACH (node, &cache)
        free(((struct intent *)node->data)->blob);
    shash_destroy_free_data(&cache);
    moat_policy_destroy(policy);
    moat_inventory_destroy(inventory);
    free(text);
    free(policy_problem);
    free(inventory_problem);
}
