/* SPDX-License-Identifier: Apache-2.0 */

/* Settings of a VM: each block that names it writes its fields over those of the
 * blocks before. */

#include "policy/settings.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "policy/member.h"

/* --- What there is ---------------------------------------------------------------------- */

#define SECOND 1000u

#define FIELD(NAME)                                                                                \
    .field = offsetof(struct moat_settings, NAME), .size = sizeof(((struct moat_settings *)0)->NAME)

#define ON_OFF .kind = SETTING_CHOICE, .wanted = "`on` or `off`", .words = {"off", "on"}
#define NUMBER                                                                                     \
    .kind = SETTING_NUMBER, .wanted = "a number up to 100000000",                                  \
    .hint = "0 is the engine's default", .max = 100000000

static const struct setting_def defs[N_SETTINGS] = {
    [SETTING_ON_MISSING_POLICY] = {"on-missing-policy", SETTING_CHOICE, "`block` or `allow`",
                                   .words = {"block", "allow"}, FIELD(on_missing_policy)},
    [SETTING_ON_MISSING_STATE] = {"on-missing-state", SETTING_FAIL, "`block`, `allow` or `pickup`",
                                  .words = {"block", "allow", "pickup"}, FIELD(on_missing_state)},
    [SETTING_ON_UNPROTECTED_HOST] = {"on-unprotected-host", SETTING_CHOICE, "`block` or `allow`",
                                     .words = {"block", "allow"}, FIELD(on_unprotected_host)},
    [SETTING_TCP] = {"tcp", SETTING_CHOICE, "`strict` or `loose`", .words = {"strict", "loose"},
                     FIELD(tcp_loose)},
    [SETTING_TRANSFER_SESSIONS] = {"transfer-sessions", ON_OFF, FIELD(transfer_sessions)},
    [SETTING_ANTI_SPOOFING] = {"anti-spoofing", SETTING_CHOICE, "`strict`, `learn-once` or `off`",
                               .words = {[MOAT_SPOOF_STRICT] = "strict",
                                         [MOAT_SPOOF_OFF] = "off",
                                         [MOAT_SPOOF_LEARN] = "learn-once"},
                               FIELD(spoof)},
    [SETTING_VLAN] = {"vlan", SETTING_CHOICE, "`block` or `inspect`",
                      .words = {[MOAT_VLAN_BLOCK] = "block", [MOAT_VLAN_INSPECT] = "inspect"},
                      FIELD(vlan)},
    [SETTING_RA_GUARD] = {"ra-guard", ON_OFF, FIELD(ra_guard)},
    [SETTING_DHCP_GUARD] = {"dhcp-guard", ON_OFF, FIELD(dhcp_guard)},
    [SETTING_ETHERTYPES] = {"ethertypes", SETTING_ETHER_TYPES, "an ethertype or `none`",
                            "write: ethertypes 0x88cc, 0x88f7"},
    [SETTING_HOLD] = {"hold", SETTING_TIME, "a time of up to 60s", "write: hold 800ms",
                      .max = MOAT_HOLD_MAX, .unit = 1, FIELD(hold_ms)},
    [SETTING_ENROLL] = {"enroll", SETTING_TIME, "a time of up to 1h, in seconds",
                        "write: enroll 10m; 0s is off", .max = MOAT_ENROLL_MAX * SECOND,
                        .unit = SECOND, FIELD(enroll_s)},
    [SETTING_MAX_SESSIONS] = {"max-sessions", NUMBER, FIELD(max_sessions)},
    [SETTING_MAX_HALF_OPEN] = {"max-half-open", NUMBER, FIELD(max_half_open)},
    [SETTING_MAX_NEW_SESSIONS] = {"max-new-sessions", NUMBER, FIELD(max_new)},
    [SETTING_MAX_FRAGMENTS] = {"max-fragments", NUMBER, FIELD(max_fragments)},
    [SETTING_MAX_LOGS] = {"max-logs", NUMBER, FIELD(max_logs)},
#define X(SYM, NAME, SECONDS)                                                                      \
    [SETTING_TIMERS + MOAT_T_##                                                                    \
        SYM] = {"timer " NAME,          SETTING_TIME,                                              \
                "1s to 7d, in seconds", "write: timer " NAME " 90s, or 2m, 12h, 7d",               \
                .min = SECOND,          .max = MOAT_TIMER_MAX * SECOND,                            \
                .unit = SECOND,         FIELD(timers[MOAT_T_##SYM])},
    MOAT_TIMERS(X)
#undef X
};

const struct setting_def *moat_setting_def(enum ast_setting_key key)
{
    return key < N_SETTINGS ? &defs[key] : NULL;
}

const char *moat_setting_bad_ethertype(uint32_t type)
{
    if (!moat_ethertype_is_judged(type))
        return NULL;
    if (type < 0x0600)
        return "a number below 0x0600 is a frame's length, not an ethertype";
    switch (type) {
    case 0x0800:
    case 0x0806:
    case 0x86dd:
        return "IPv4, IPv6 and ARP are for rules to decide";
    case 0x8035:
        return "a VM's own RARP announcement passes anyway, others do not";
    case 0x8100:
    case 0x88a8:
        return "for tagged frames write: vlan inspect";
    default:
        return "behind an old tag a packet would hide; what can be inspected are 802.1Q and "
               "802.1ad, with: vlan inspect";
    }
}

/* --- What a VM gets --------------------------------------------------------------------- */

static void apply(const struct ast_setting *s, struct moat_settings *out)
{
    const struct setting_def *def = moat_setting_def(s->key);
    unsigned char *field = (unsigned char *)out + def->field;

    if (def->kind == SETTING_ETHER_TYPES) {
        out->n_ethertypes = (uint8_t)s->value;
        memcpy(out->ethertypes, s->ethertypes, sizeof out->ethertypes);
        return;
    }
    uint32_t value = def->kind == SETTING_TIME ? s->value / def->unit : s->value;
    if (def->size == 1)
        *field = (uint8_t)value;
    else
        memcpy(field, &value, sizeof value);
    if (s->pickup_s)
        out->pickup_s = s->pickup_s;
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
    out->quarantine = moat_member_in_quarantine(&m);
    for (uint32_t i = 0; i < y->n_settings; i++) {
        if (!moat_member_expr(&m, &y->settings[i].vms))
            continue;
        for (uint32_t k = 0; k < y->settings[i].n; k++)
            apply(&y->settings[i].v[k], out);
    }
    moat_member_destroy(&m);
    return 0;
}
