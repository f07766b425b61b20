/* SPDX-License-Identifier: Apache-2.0 */

/* Settings of a VM: each block that names it writes its fields over those of the
 * blocks before. */

#include <errno.h>

#include "policy/ast.h"
#include "policy/member.h"

static void apply(const struct ast_setting *s, struct moat_settings *out)
{
    switch (s->key) {
    case SETTING_ON_MISSING_POLICY:
        out->on_missing_policy = (uint8_t)s->value;
        break;
    case SETTING_ON_MISSING_STATE:
        out->on_missing_state = (uint8_t)s->value;
        if (s->pickup_s)
            out->pickup_s = s->pickup_s;
        break;
    case SETTING_ON_UNPROTECTED_HOST:
        out->on_unprotected_host = (uint8_t)s->value;
        break;
    case SETTING_TCP:
        out->tcp_loose = (uint8_t)s->value;
        break;
    case SETTING_TRANSFER_SESSIONS:
        out->transfer_sessions = (uint8_t)s->value;
        break;
    case SETTING_ANTI_SPOOFING:
        out->spoof = (uint8_t)s->value;
        break;
    case SETTING_HOLD:
        out->hold_ms = s->value;
        break;
    case SETTING_MAX_SESSIONS:
        out->max_sessions = s->value;
        break;
    case N_SETTINGS:
        break;
    }
}

int moat_policy_settings(const struct moat_policy *y, const struct moat_inventory *inv, unsigned vm,
                         struct moat_settings *out)
{
    struct moat_member m;

    moat_settings_init(out);
    out->quarantine = 1;
    if (vm >= inv->n_vms)
        return -EINVAL;
    if (!y)
        return 0;
    if (moat_member_init(&m, y, inv))
        return -ENOMEM;
    moat_member_vm(&m, vm);
    out->quarantine = !moat_member_has_policy(&m);
    for (uint32_t i = 0; i < y->n_settings; i++) {
        if (!moat_member_expr(&m, &y->settings[i].vms))
            continue;
        for (uint32_t k = 0; k < y->settings[i].n; k++)
            apply(&y->settings[i].v[k], out);
    }
    moat_member_destroy(&m);
    return 0;
}
