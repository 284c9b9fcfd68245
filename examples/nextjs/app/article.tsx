import { readArticle } from "@/lib/content";
import { notFound } from "next/navigation";
import type { ReactNode } from "react";

export async function Article({ id, children }: { id: string; children: (revision: number) => ReactNode }) {
  const article = await readArticle(id);
  if (!article) notFound();
  return (
    <article>
      {children(article.revision)}
      <h1>{article.title}</h1>
      <p className="text">{article.text}</p>
      <footer>revision {article.revision}</footer>
    </article>
  );
}
