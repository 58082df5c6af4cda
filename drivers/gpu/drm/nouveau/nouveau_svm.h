/* SPDX-License-Identifier: GPL-2.0 */
/* Shared virtual memory: a GPU that uses the addresses of a process. */
#ifndef __NOUVEAU_SVM_H__
#define __NOUVEAU_SVM_H__

#include <linux/errno.h>
#include <linux/types.h>

struct drm_device;
struct drm_file;
struct nouveau_drm;
struct nouveau_svmm;

#if IS_ENABLED(CONFIG_DRM_NOUVEAU_SVM)

/* The device: its replayable faults. */
void nouveau_svm_init(struct nouveau_drm *drm);
void nouveau_svm_resume(struct nouveau_drm *drm);
void nouveau_svm_suspend(struct nouveau_drm *drm);
void nouveau_svm_fini(struct nouveau_drm *drm);

/* A process: its address space on the GPU, and the channels that work in it. */
int nouveau_svmm_init(struct drm_device *dev, void *data, struct drm_file *file);
int nouveau_svmm_bind(struct drm_device *dev, void *data, struct drm_file *file);
int nouveau_svmm_join(struct nouveau_svmm *svmm, u64 inst);
void nouveau_svmm_part(struct nouveau_svmm *svmm, u64 inst);
void nouveau_svmm_fini(struct nouveau_svmm **psvmm);

#else

static inline int
nouveau_svmm_bind(struct drm_device *dev, void *data, struct drm_file *client)
{
	return -ENOSYS;
}

static inline void nouveau_svm_resume(struct nouveau_drm *drm) { }

static inline int
nouveau_svmm_init(struct drm_device *dev, void *data, struct drm_file *client)
{
	return -ENOSYS;
}

static inline void nouveau_svm_suspend(struct nouveau_drm *drm) { }

static inline int nouveau_svmm_join(struct nouveau_svmm *svmm, u64 channel)
{
	return 0;
}

static inline void nouveau_svm_init(struct nouveau_drm *drm) { }
static inline void nouveau_svmm_part(struct nouveau_svmm *svmm, u64 channel) { }
static inline void nouveau_svm_fini(struct nouveau_drm *drm) { }
static inline void nouveau_svmm_fini(struct nouveau_svmm **psvmm) { }

#endif /* CONFIG_DRM_NOUVEAU_SVM */
#endif /* __NOUVEAU_SVM_H__ */
