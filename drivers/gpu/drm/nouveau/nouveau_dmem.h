/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Pages of processes in VRAM.
 */
#ifndef __NOUVEAU_DMEM_H__
#define __NOUVEAU_DMEM_H__

#include <linux/types.h>

struct hmm_devmem_result;
struct mm_struct;
struct nouveau_drm;
struct page;

#if IS_ENABLED(CONFIG_DRM_NOUVEAU_SVM)
void nouveau_dmem_init(struct nouveau_drm *drm);
int nouveau_dmem_migrate(struct nouveau_drm *drm, struct mm_struct *mm,
			 unsigned long start, unsigned long end,
			 struct hmm_devmem_result *result);
void nouveau_dmem_suspend(struct nouveau_drm *drm);
bool nouveau_dmem_page_addr(struct page *page, u64 *addr);
void nouveau_dmem_resume(struct nouveau_drm *drm);
void *nouveau_dmem_owner(struct nouveau_drm *drm);
void nouveau_dmem_fini(struct nouveau_drm *drm);
#else
static inline void nouveau_dmem_suspend(struct nouveau_drm *unused) {}
static inline void nouveau_dmem_init(struct nouveau_drm *unused) {}
static inline void nouveau_dmem_resume(struct nouveau_drm *unused) {}
static inline void nouveau_dmem_fini(struct nouveau_drm *unused) {}
#endif

#endif /* __NOUVEAU_DMEM_H__ */
